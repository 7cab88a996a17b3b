"""verbalizers.json: paths relative to the checkpoint, and what is said when one leads nowhere."""

import json

import pytest

from moai.checkpoints.io.lookup import BUNDLED_FOLDER
from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from moai.scenes.scenes import Scenes
from verbalizers import build_verbalizer
from verbalizers.core.scene import parse_scene

SMALL = BUNDLED_FOLDER / "verbalizers"
FOLDERS = ("efficientnet-imagenet", "mask2former-nano", "nanodet-coco", "owlv2-nano", "predcls-nano", "psgtr-nano")


def write_settings(folder, settings):
    folder.mkdir(exist_ok=True)
    entry = {"kind": "detection", "backend": "owlv2", "settings": {"vocabulary": ["dog"], **settings}}
    (folder / "verbalizers.json").write_text(json.dumps([entry]))


def test_settings_find_a_checkpoint_beside_the_model_when_named_by_dots(tmp_path):
    (tmp_path / "eyes").mkdir()
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    write_settings(tmp_path / "model", {"checkpoint": "../eyes", "vocabulary": "../names.txt"})
    (detector,), absent = VerbalizerSettings.load(tmp_path / "model").build()
    assert detector.checkpoint == str(tmp_path / "eyes") and not absent
    assert tuple(detector.vocabulary) == ("cat", "dog")


def test_settings_name_the_kind_and_the_path_when_nothing_is_there(tmp_path):
    write_settings(tmp_path / "model", {"checkpoint": "../eyes"})
    built, absent = VerbalizerSettings.load(tmp_path / "model").build()
    assert not built and str(tmp_path / "eyes") in absent["detection"]


@pytest.mark.skipif(not SMALL.is_dir(), reason="an installation without the repository's checkpoints")
def test_verbalizers_inside_others_travel_as_those_outside_do(tmp_path, monkeypatch):
    monkeypatch.chdir(SMALL.parent)
    inner = {"backend": "nanodet", "checkpoint": "verbalizers/nanodet-coco", "device": "cpu"}
    outer = build_verbalizer(
        "detection", "classified", checkpoint="verbalizers/efficientnet-imagenet", detector=inner, device="cpu"
    )
    fingerprint = outer.fingerprint()
    (tmp_path / "model").mkdir()
    VerbalizerSettings().with_verbalizers([outer]).save(tmp_path / "model")
    (entry,) = json.loads((tmp_path / "model" / "verbalizers.json").read_text(encoding="utf-8"))["verbalizers"]
    assert entry["settings"]["checkpoint"] == "efficientnet-imagenet" and "device" not in entry["settings"]
    assert entry["settings"]["detector"] == {"backend": "nanodet", "checkpoint": "nanodet-coco"}
    monkeypatch.chdir(tmp_path)
    (again,), absent = VerbalizerSettings.load(tmp_path / "model").build()
    assert not absent and again.detector["checkpoint"] == str(SMALL / "nanodet-coco")
    assert again.fingerprint() == fingerprint


def test_parts_inside_a_hub_checkpoint_are_fetched_when_verbalizers_inside_others_name_them(tmp_path, monkeypatch):
    from moai.checkpoints.io import verbalizer_settings

    asked = []
    monkeypatch.setattr(verbalizer_settings, "download_files", lambda name, patterns, revision: asked.extend(patterns))
    drawing = {"backend": "owlv2", "checkpoint": "./eyes", "vocabulary": ["dog"]}
    detector = {"backend": "nanodet", "checkpoint": "./boxes"}
    photograph = {"backend": "classified", "checkpoint": "./names", "detector": detector}
    parts = {"drawing": drawing, "photograph": photograph}
    entry = {"kind": "detection", "backend": "by_image", "settings": parts}
    (tmp_path / "verbalizers.json").write_text(json.dumps([entry]))
    settings = VerbalizerSettings.load(tmp_path)
    verbalizer_settings._fetch_parts("owner/name", tmp_path, settings)
    assert {"eyes", "names", "boxes"} <= set(asked)


def test_settings_leave_hub_names_and_published_vocabularies_alone(tmp_path):
    write_settings(tmp_path / "model", {"checkpoint": "google/owlv2-base-patch16-ensemble"})
    (detector,), absent = VerbalizerSettings.load(tmp_path / "model").build()
    assert detector.checkpoint == "google/owlv2-base-patch16-ensemble" and not absent


@pytest.mark.skipif(not SMALL.is_dir(), reason="an installation without the repository's checkpoints")
@pytest.mark.parametrize("name", FOLDERS)
def test_bundled_verbalizers_are_small_and_have_a_card(name):
    assert (SMALL / name / "model.safetensors").stat().st_size < 12e6
    assert "Apache" in (SMALL / name / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif(not SMALL.is_dir(), reason="an installation without the repository's checkpoints")
def test_bundled_verbalizers_see_what_is_in_scenes_when_named_by_moai_nano():
    for package in ("timm", "rapidocr", "onnxruntime"):
        pytest.importorskip(package)
    verbalizers, absent = VerbalizerSettings.load(BUNDLED_FOLDER / "moai-nano").build()
    assert [v.kind for v in verbalizers] == ["segmentation", "detection", "scene_graph", "ocr"] and not absent
    samples = list(Scenes("test", num_questions=1, length=8))
    found = parse_scene([sample.image for sample in samples], verbalizers)
    named, wanted, relations = 0, 0, 0
    for sample, scene in zip(samples, found, strict=True):
        assert not scene.failures
        truth = set(sample.truth.segments.class_names)
        named, wanted = named + len(truth & set(scene.segments.class_names)), wanted + len(truth)
        relations += len(scene.relations)
    assert named > 0.5 * wanted and relations > 0


def test_settings_name_the_package_when_a_backbone_needs_one(tmp_path, monkeypatch):
    monkeypatch.setattr("moai.checkpoints.io.verbalizer_settings.is_timm_available", lambda: False)
    (tmp_path / "eyes").mkdir()
    (tmp_path / "eyes" / "config.json").write_text('{"backbone_config": {"model_type": "timm_backbone"}}')
    write_settings(tmp_path / "model", {"checkpoint": "../eyes"})
    built, absent = VerbalizerSettings.load(tmp_path / "model").build()
    assert not built and 'pip install "moai-vlm[segmentation]"' in absent["detection"]
