import dataclasses
import importlib
import sys

import numpy as np
import pytest

from verbalizers import (
    Finding,
    Scene,
    Verbalizer,
    available_verbalizers,
    build_verbalizer,
    draw_scene,
    parse_scene,
    register_drawing,
    register_finding,
    register_verbalizer,
    register_words,
    verbalize_scene,
)
from verbalizers.core import plugins, registry, structures


@pytest.fixture(autouse=True)
def clean_registry(monkeypatch):
    for name in ("_REGISTRY", "_WORDS", "_DRAWINGS"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
    plugins.list_plugins.cache_clear()
    plugins.import_plugins.cache_clear()
    monkeypatch.setattr(structures, "STRUCTURES", dict(structures.STRUCTURES))


def make_class():
    class Mood(Verbalizer):
        def __init__(self, word="calm"):
            self.word = word

        def predict(self, images):
            return [f"The image is {self.word}." for _ in images]

    return Mood


def test_new_kind_speaks_when_registered():
    register_verbalizer("mood", "constant")(make_class())
    assert available_verbalizers()["mood"] == ("constant",)
    scene = parse_scene([np.zeros((4, 4, 3), np.uint8)], [build_verbalizer("mood", word="grey")])[0]
    assert scene.findings == {"mood": "The image is grey."}
    assert verbalize_scene(scene) == "The image is grey."
    assert verbalize_scene(scene, kinds=["ocr"]) == ""
    with pytest.raises(ValueError, match="unknown kind 'depth'"):
        verbalize_scene(scene, kinds=["depth"])


def test_words_and_drawing_see_the_scene_when_registered():
    @register_words("mood")
    def words(finding, scene, settings):
        return f"{finding['word']} at {scene.image_size_hw}, {settings.max_relations} at most."

    @register_drawing("mood")
    def drawing(finding, scene, image):
        image = image.copy()
        image.putpixel((0, 0), tuple(finding["colour"]))
        return image

    scene = Scene((4, 6), findings={"mood": {"word": "grey", "colour": [1, 2, 3]}})
    assert verbalize_scene(scene) == "grey at (4, 6), 10 at most."
    image = draw_scene(scene, np.zeros((4, 6, 3), np.uint8))
    assert image.getpixel((0, 0)) == (1, 2, 3) and image.getpixel((1, 0)) == (0, 0, 0)
    assert verbalize_scene(Scene((4, 6), findings={"mood": None})) == ""


def test_register_words_refuses_when_kind_has_others():
    register_words("mood")(lambda *_: "a")
    with pytest.raises(ValueError, match="words of kind 'mood' is already"):
        register_words("mood")(len)
    with pytest.raises(ValueError, match="identifier"):
        register_drawing("my mood")


def test_drawing_is_refused_when_size_differs():
    register_drawing("mood")(lambda finding, scene, image: image.resize((1, 1)))
    with pytest.raises(ValueError, match="drawing of kind 'mood'"):
        draw_scene(Scene((4, 6), findings={"mood": "calm"}), np.zeros((4, 6, 3), np.uint8))


def test_register_finding_refuses_when_name_is_taken_or_class_is_none():
    @dataclasses.dataclass(frozen=True, eq=False)
    class Tone(Finding):
        value: int
        structure = "segments"

    with pytest.raises(ValueError, match="'segments' is already"):
        register_finding(Tone)
    with pytest.raises(ValueError, match="inherits from Finding"):
        register_finding(dict)
    Tone.structure = "tone"
    register_finding(Tone)
    scene = Scene((1, 1), findings={"mood": Tone(3)})
    assert Scene.from_dict(scene.to_dict()) == scene
    with pytest.raises(ValueError, match="register_words"):
        verbalize_scene(scene)


def test_finding_stays_a_mapping_when_nobody_knows_its_structure():
    data = {"image_size_hw": [1, 1], "findings": {"smell": {"structure": "odour", "value": 1}}}
    assert Scene.from_dict(data).findings["smell"] == {"structure": "odour", "value": 1}


def test_register_refuses_when_name_is_taken_or_class_is_foreign():
    register_verbalizer("mood", "constant")(make_class())

    class Other(make_class()):
        pass

    with pytest.raises(ValueError, match="already"):
        register_verbalizer("mood", "constant")(Other)
    with pytest.raises(ValueError, match="subclass"):
        register_verbalizer("mood", "dictionary")(dict)
    with pytest.raises(ValueError, match="identifier"):
        register_verbalizer("my mood", "x")


def test_build_names_the_choices_when_unknown():
    with pytest.raises(ValueError, match="segmentation"):
        build_verbalizer("smell")
    with pytest.raises(ValueError, match="rapidocr"):
        build_verbalizer("ocr", "handwriting")


def test_default_backend_is_first_when_several():
    kinds = available_verbalizers()
    assert set(kinds) >= {"segmentation", "detection", "scene_graph", "ocr"}
    assert kinds["ocr"][0] == "rapidocr"


PLUGIN = """
from verbalizers import Verbalizer

class Weather(Verbalizer):
    def predict(self, images):
        return ["The weather is fine." for _ in images]
"""


def install(tmp_path, monkeypatch, source, target):
    """A distribution on the path, as pip would leave it."""
    (tmp_path / "weather_plugin.py").write_text(source)
    info = tmp_path / "weather_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: weather-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[moai.verbalizers]\nweather.almanac = {target}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "weather_plugin", raising=False)
    importlib.invalidate_caches()


def test_plugin_is_listed_unimported_and_built_when_installed(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, PLUGIN, "weather_plugin:Weather")
    assert available_verbalizers()["weather"] == ("almanac",)
    assert "weather_plugin" not in sys.modules
    verbalizer = build_verbalizer("weather")
    assert (verbalizer.kind, verbalizer.backend) == ("weather", "almanac")
    assert verbalizer.predict([None]) == ["The weather is fine."]


def test_plugin_failure_is_named_when_it_cannot_be_imported(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "import a_module_nobody_has", "weather_plugin:Weather")
    with pytest.raises(ImportError, match=r"weather\.almanac.*a_module_nobody_has"):
        build_verbalizer("weather")


def test_plugin_is_named_when_its_entry_registers_nothing(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "", "weather_plugin")
    with pytest.raises(ImportError, match="registered no kind 'weather'"):
        build_verbalizer("weather")


def test_fingerprint_follows_content_when_a_setting_is_a_folder(tmp_path):
    @register_verbalizer("mood", "folder")
    @dataclasses.dataclass
    class Mood(Verbalizer):
        model_dir: str

        def predict(self, images):
            return []

    def folder(name, content):
        (tmp_path / name).mkdir()
        (tmp_path / name / "inference.yml").write_text(content)
        return Mood(str(tmp_path / name)).fingerprint()

    assert folder("a", "one") == folder("b", "one") != folder("c", "two")


def test_fingerprint_changes_when_a_setting_changes():
    cls = register_verbalizer("mood", "constant")(make_class())
    assert cls("a").fingerprint() == cls("a").fingerprint() != cls("b").fingerprint()


def test_fingerprint_is_the_same_when_a_registered_class_moves_and_another_when_its_version_rises(monkeypatch):
    verbalizer = build_verbalizer("scene_graph", "geometric")
    before = verbalizer.fingerprint()
    monkeypatch.setattr(type(verbalizer), "__module__", "verbalizers.backends.elsewhere")
    assert verbalizer.fingerprint() == before
    monkeypatch.setattr(type(verbalizer), "version", type(verbalizer).version + 1)
    assert verbalizer.fingerprint() != before


def test_fingerprint_is_its_own_when_a_subclass_is_not_registered():
    parent = register_verbalizer("mood", "constant")(make_class())

    class Gloomier(parent):
        pass

    class Brighter(Gloomier):
        pass

    assert len({cls("a").fingerprint() for cls in (parent, Gloomier, Brighter)}) == 3
