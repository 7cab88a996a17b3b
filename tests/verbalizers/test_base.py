import importlib
import sys

import numpy as np
import pytest

from verbalizers import (
    Verbalizer,
    available_verbalizers,
    base,
    build_verbalizer,
    parse_scene,
    register_verbalizer,
    verbalize_scene,
)


@pytest.fixture(autouse=True)
def clean_registry(monkeypatch):
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))


def make_class():
    class Mood(Verbalizer):
        def __init__(self, word="calm"):
            self.word = word

        def predict(self, images):
            return [f"The picture is {self.word}." for _ in images]

    return Mood


def test_new_kind_speaks_when_registered():
    register_verbalizer("mood", "constant")(make_class())
    assert available_verbalizers()["mood"] == ("constant",)
    scene = parse_scene([np.zeros((4, 4, 3), np.uint8)], [build_verbalizer("mood", word="grey")])[0]
    assert scene.findings == {"mood": "The picture is grey."}
    assert verbalize_scene(scene) == "The picture is grey."
    assert verbalize_scene(scene, kinds=["ocr"]) == ""
    with pytest.raises(ValueError, match="unknown kind 'depth'"):
        verbalize_scene(scene, kinds=["depth"])


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


def test_fingerprint_changes_when_a_setting_changes():
    cls = register_verbalizer("mood", "constant")(make_class())
    assert cls("a").fingerprint() == cls("a").fingerprint() != cls("b").fingerprint()
