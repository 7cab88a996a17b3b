"""What a converted checkpoint looks with: the release's models and thresholds, named or brought along."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from psgtr_checkpoints import build_official_psgtr
from verbalizer_builders import save_mask2former, save_owlv2

from moai import Pipeline
from moai.checkpoints.convert import PublishedVerbalizers, convert
from moai.checkpoints.io.published_settings import PUBLISHED_DETECTOR, PUBLISHED_SEGMENTER
from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings


@pytest.fixture(scope="module")
def eyes(tmp_path_factory):
    """Folders of a segmenter and a detector, and a published scene-graph file."""
    folder = tmp_path_factory.mktemp("eyes")
    for name, save in (("segmenter", save_mask2former), ("detector", save_owlv2)):
        (folder / name).mkdir()
        save(folder / name)
    torch.save({"state_dict": build_official_psgtr()[1]}, folder / "psgtr.pth")
    (folder / "names.txt").write_text("cat\ndog\n", encoding="utf-8")
    return folder


def test_conversion_names_the_published_models_when_nothing_is_chosen(tmp_path, release):
    pytest.importorskip("timm")
    report = convert(release, tmp_path / "ours")
    data = json.loads((tmp_path / "ours" / "verbalizers.json").read_text(encoding="utf-8"))
    segmentation, detection, scene_graph, ocr = data["verbalizers"]
    assert segmentation["settings"] == {
        "checkpoint": "facebook/mask2former-swin-base-coco-panoptic",
        "threshold": 0.5,
        "mask_threshold": 0.95,
        "overlap_mask_area_threshold": 0.8,
    }
    assert detection["settings"]["checkpoint"] == "google/owlv2-base-patch16-ensemble"
    assert detection["settings"]["threshold"] == 0.5 and detection["settings"]["nms_threshold"] is None
    assert scene_graph == {"kind": "scene_graph", "backend": "geometric"}
    assert ocr == {"kind": "ocr", "backend": "rapidocr", "settings": {"threshold": 0.85}}
    assert data["compat"] is True and data["map"] == "always"
    assert data["words"] == {
        "detection_threshold": 0.5,
        "relation_threshold": 0.8,
        "max_relations": 10,
        "text_threshold": 0.85,
        "merge_iou": None,
        "max_predictions": 200,
        "quote_text": True,
        "locate_text": False,
        "order_by_name": False,
        "detections_first": False,
    }
    names = (tmp_path / "ours" / "verbalizers" / "vocabulary.txt").read_text(encoding="utf-8").splitlines()
    assert len(names) >= 990 and "tench" in names
    card = (tmp_path / "ours" / "README.md").read_text(encoding="utf-8")
    for text in (str(report), card):
        assert "the release's learned scene graph (PSGTR) is absent" in text and "scene_graph/geometric" in text
        assert f"fetched where the local cache lacks them: {PUBLISHED_SEGMENTER}, {PUBLISHED_DETECTOR}" in text


def test_conversion_carries_the_models_along_when_they_are_folders(tmp_path, release, eyes):
    choice = PublishedVerbalizers(
        eyes / "segmenter", eyes / "detector", eyes / "psgtr.pth", vocabulary=eyes / "names.txt"
    )
    report = convert(release, tmp_path / "ours", verbalizers=choice)
    moved = tmp_path / "elsewhere" / "moved"
    shutil.move(tmp_path / "ours", moved)
    built, absent = VerbalizerSettings.load(moved).build()
    assert not absent or set(absent) == {"ocr"}  # rapidocr may be missing
    segmenter, detector, scene_graph = built[:3]
    for verbalizer in (segmenter, detector, scene_graph):
        assert verbalizer.checkpoint == str(moved / "verbalizers" / verbalizer.kind)
        assert verbalizer.load() is not None
    assert detector.vocabulary == ("cat", "dog") and scene_graph.backend == "psgtr"
    assert (scene_graph.subject_threshold, scene_graph.relation_threshold) == (0.5, 0.3)
    assert not any("scene graph" in note or "hub" in note or "CC BY-NC" in note for note in report.notes)


@pytest.mark.parametrize("kind", ["segmentation", "detection", "scene_graph"])
@pytest.mark.parametrize("source", ["./nowhere", "empty", "file.pth"])
def test_conversion_writes_nothing_when_a_model_is_not_there(tmp_path, release, kind, source):
    (tmp_path / "empty").mkdir()
    torch.save({"weight": torch.zeros(1)}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"^expected .* got .*\. (Check|Save)"):
        convert(release, tmp_path / "ours", verbalizers=PublishedVerbalizers(**{kind: tmp_path / source}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file.pth"]


def test_conversion_names_the_package_when_the_detectors_names_need_one(tmp_path, release, monkeypatch):
    def lacks(source):
        raise ImportError('ImageNet names come from timm: pip install "moai-vlm[segmentation]"')

    monkeypatch.setattr("moai.checkpoints.convert.published_verbalizers.load_vocabulary", lacks)
    report = convert(release, tmp_path / "ours")
    assert any('pip install "moai-vlm[segmentation]"' in note for note in report.notes)
    detection = VerbalizerSettings.load(tmp_path / "ours").verbalizers[1]
    assert detection["settings"]["vocabulary"] == "imagenet"


def test_convert_refuses_verbalizers_when_the_source_is_one(tmp_path, eyes):
    with pytest.raises(ValueError, match="chosen for a MoAI, got a checkpoint of the kind 'psgtr'"):
        convert(eyes / "psgtr.pth", tmp_path / "ours", verbalizers=PublishedVerbalizers())


def test_settings_report_a_kind_when_its_backend_is_unknown_here(tmp_path):
    entries = [{"kind": "ocr", "backend": "of_tomorrow"}, {"kind": "smell"}]
    (tmp_path / "verbalizers.json").write_text(json.dumps(entries))
    built, absent = VerbalizerSettings.load(tmp_path).build()
    assert not built and "ocr/of_tomorrow" in absent["ocr"] and "smell" in absent["smell"]


def test_pipeline_names_the_command_when_the_checkpoint_is_not_converted_yet(release):
    with pytest.raises(ValueError, match=rf"got '{release}' with model_type 'internlm2'.*`moai convert {release} OUT`"):
        Pipeline.from_pretrained(release)
