import dataclasses
import json

import numpy as np
import pytest

from verbalizers import Detections, Relations, Scene, Segments, TextLines


def make_scene() -> Scene:
    rng = np.random.default_rng(0)
    panoptic_map = rng.integers(-1, 4, (13, 17))
    return Scene(
        image_size_hw=(13, 17),
        segments=Segments(panoptic_map, (3, 1), ("cat", "sky"), rng.random(2)),
        detections=Detections(rng.normal(size=(3, 4)), ("a", "b", "c"), rng.random(3), (13, 17)),
        relations=Relations(("a", "b"), (0, 1), (1, 0), ("on", "under"), rng.random(2), rng.random((2, 4))),
        text_lines=TextLines(rng.random((2, 4, 2)), ('价格 "5"', "<image>"), rng.random(2)),
        findings={"depth": Relations(("x",), (0,), (0,), ("nearer than",), (1.0,)), "mood": "It is calm.", "n": 3},
        failures={"pose": "no answer within 1 s"},
    )


def test_scene_survives_json_when_written_and_read():
    scene = make_scene()
    again = Scene.from_dict(json.loads(json.dumps(scene.to_dict())))
    assert again == scene
    assert again.segments.panoptic_map.dtype == np.int32
    assert isinstance(again.findings["depth"], Relations)
    assert Scene.from_dict(json.loads(json.dumps(Scene((2, 3)).to_dict()))) == Scene((2, 3))


def test_scene_survives_json_when_nothing_was_found():
    empty = Scene(
        (2, 3),
        segments=Segments(np.zeros((2, 3), np.int32), (), (), ()),
        detections=Detections(np.zeros((0, 4)), (), (), (2, 3)),
        relations=Relations((), (), (), (), (), np.zeros((0, 4))),
        text_lines=TextLines(np.zeros((0, 4, 2)), (), ()),
    )
    again = Scene.from_dict(json.loads(json.dumps(empty.to_dict())))
    assert again == empty
    assert again.relations.object_boxes_xyxy.shape == (0, 4)
    with pytest.raises(ValueError, match="shape"):
        TextLines([], ("STOP",), (1.0,))


def test_scene_differs_when_one_value_differs():
    scene = make_scene()
    assert scene != dataclasses.replace(scene, segments=None)
    assert scene != dataclasses.replace(scene, failures={})
    changed = scene.segments.panoptic_map.copy()
    changed[0, 0] += 1
    assert scene.segments != dataclasses.replace(scene.segments, panoptic_map=changed)


def test_structures_cannot_be_changed_when_built():
    scene = make_scene()
    with pytest.raises(dataclasses.FrozenInstanceError):
        scene.segments = None
    with pytest.raises(ValueError, match="read-only"):
        scene.detections.boxes_xyxy[0] = 0
    source = np.zeros((2, 2), dtype=np.int32)
    segments = Segments(source, (), (), ())
    source[0, 0] = 7
    assert segments.panoptic_map.max() == 0


def test_segments_boxes_are_tight_when_ids_are_unsorted_or_absent():
    panoptic_map = np.zeros((10, 12), dtype=np.int64)
    panoptic_map[2:5, 3:7] = 9
    panoptic_map[9, 11] = 4
    segments = Segments(panoptic_map, (9, 5, 4), ("a", "b", "c"), (1, 1, 1))
    assert segments.boxes_xyxy.tolist() == [[3, 2, 7, 5], [0, 0, 0, 0], [11, 9, 12, 10]]
    assert segments.pixel_counts.tolist() == [12, 0, 1]
    assert segments.image_size_hw == (10, 12)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Detections([1, 2, 3, 4], ("a",), (1,), (5, 5)), r"shape \(N, 4\), got \(4,\).*boxes\[None\]"),
        (lambda: Detections([[1, 2, 3, 4]], "cat", (1,), (5, 5)), "one string"),
        (lambda: Detections([[1, 2, 3, 4]], (3,), (1,), (5, 5)), "strings, got int"),
        (lambda: Detections([[1, 2, 3, 4]], ("a", "b"), (1,), (5, 5)), "1 entries"),
        (lambda: Detections([[1, 2, 3, np.nan]], ("a",), (1,), (5, 5)), "finite"),
        (lambda: Detections([[1, 2, 3, 4]], ("a",), (7,), (5, 5)), "sigmoid"),
        (lambda: Detections([[1, 2, 3, 4]], ("a",), (1,), (5, 0)), "height, width"),
        (lambda: Segments(np.zeros((2, 2)), (), (), ()), "integer ids"),
        (lambda: Segments(np.zeros((2, 2, 1), int), (), (), ()), r"\(H, W\)"),
        (lambda: Segments(np.zeros((2, 2), int), (1, 1), ("a", "b"), (1, 1)), "distinct"),
        (lambda: Segments(np.zeros((2, 2), int), (0,), ("a",), (1,)), "positive"),
        (lambda: Relations(("a",), (0,), (1,), ("on",), (1,)), "object_indices"),
        (lambda: Relations(("a",), (0, 0), (0,), ("on",), (1,)), "subject_indices"),
        (lambda: TextLines(np.zeros((1, 4)), ("a",), (1,)), "quads"),
        (lambda: Scene((4, 4), segments="nothing"), "Segments or None"),
        (lambda: Scene((4,)), "height, width"),
        (lambda: Scene.from_dict({"image_size_hw": [2, 2], "colour": 1}), "colour"),
        (lambda: Scene.from_dict({}), "image_size_hw"),
    ],
)
def test_structures_refuse_values_when_wrong(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_segments_refuse_runs_when_forged():
    data = make_scene().segments.to_dict()
    data["panoptic_map"]["image_size_hw"] = [10**6, 10**6]
    with pytest.raises(ValueError, match="must cover"):
        Segments.from_dict(data)
