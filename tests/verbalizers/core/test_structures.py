import dataclasses
import json

import numpy as np
import pytest

from verbalizers import (
    Detections,
    Relations,
    Scene,
    Segments,
    TextLines,
    WordSettings,
    draw_scene,
    verbalize_detections,
    verbalize_finding,
    verbalize_scene,
)  # fmt: skip
from verbalizers.backends.ocr import select_text_lines
from verbalizers.backends.scene_graph_geometric import GeometricSceneGraph
from verbalizers.core.adapters import boxes_to_quads
from verbalizers.core.words import LeftOutWarning


def make_scene() -> Scene:
    rng = np.random.default_rng(0)
    panoptic_map = rng.integers(-1, 4, (13, 17))
    corners = rng.random((3, 2)) * 5
    boxes = np.concatenate([corners, corners + 1 + rng.random((3, 2))], axis=1)
    return Scene(
        image_size_hw=(13, 17),
        segments=Segments(panoptic_map, (3, 1), ("cat", "sky"), rng.random(2)),
        detections=Detections(boxes, ("a", "b", "c"), rng.random(3), (13, 17)),
        relations=Relations(("a", "b"), (0, 1), (1, 0), ("on", "under"), rng.random(2), boxes[:2]),
        text_lines=TextLines(boxes_to_quads(boxes[:2]), ('价格 "5"', "<image>"), rng.random(2)),
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
        (lambda: Detections([[3, 1, 2, 4]], ("a",), (1,), (5, 5)), r"right > left.*\[3.0, 1.0, 2.0, 4.0\] in row 0"),
        (lambda: Detections([[1, 1, 2, 4], [1, 4, 2, 1]], ("a", "b"), (1, 1), (5, 5)), r"row 1 \(1 such of 2\)"),
        (lambda: Detections([[1, 2, 1, 4]], ("a",), (1,), (5, 5)), "without area"),
        (lambda: Detections([[6, 2, 8, 4]], ("a",), (1,), (5, 5)), r"lie in the image of \(5, 5\)"),
        (lambda: Detections([[-3, 2, 0, 4]], ("a",), (1,), (5, 5)), "lie in the image"),
        (lambda: Detections([["1", "2", "3", "4"]], ("a",), (1,), (5, 5)), "hold numbers, got <U1"),
        (lambda: Detections([[1, 2, 3, None]], ("a",), (1,), (5, 5)), "hold numbers, got object"),
        (lambda: Detections([[1, 2, 3, 1e300]], ("a",), (1,), (5, 5)), "finite"),
        (lambda: Detections([[1, 2, 3, 4]], ("a",), (True,), (5, 5)), "hold numbers, got bool"),
        (lambda: Detections([[1, 2, 3, 4]], ("a",), (-0.1,), (5, 5)), r"\[0, 1\]"),
        (lambda: Detections([[1, 2, 3, 4]], ("a",), (np.nan,), (5, 5)), "finite"),
        (lambda: Detections([[1, 2, 3, 4]], 7, (1,), (5, 5)), "sequence of strings, got int"),
        (lambda: Detections([[1, 2, 3, 4]], ("a",), (1,), (5.5, 5)), "height, width"),
        (lambda: Detections([[1, 2, 3, 4]], ("a",), (1,), "55"), "height, width"),
        (lambda: Segments(np.full((2, 2), 2**40), (), (), ()), "lie in"),
        (lambda: Segments(np.zeros((2, 2), int), (1.5,), ("a",), (1,)), "segment_ids.*integers, got float"),
        (lambda: Segments(np.zeros((2, 2), int), (1,), (None,), (1,)), "strings, got NoneType"),
        (lambda: Relations(("a", "b"), (0,), (0.7,), ("on",), (1,)), "object_indices.*integers"),
        (lambda: Relations(("a",), (), (), (), (), [[3, 1, 2, 4]]), "right > left"),
        (lambda: Relations(("a",), (0,), (0,), (5,), (1,)), "strings, got int"),
        (lambda: TextLines(np.zeros((1, 4, 2)), ("a",), (1,)), "around an area"),
        (lambda: TextLines(boxes_to_quads([[0, 0, 9, 5]])[:, ::-1], ("a",), (1,)), "clockwise"),
        (lambda: TextLines(boxes_to_quads([[0, 0, 9, 5]]), ("a",), (1.2,)), "sigmoid"),
        (lambda: Scene((4, 4), segments=make_scene().segments), r"segments.*\(4, 4\).*\(13, 17\)"),
        (lambda: Scene((4, 4), detections=make_scene().detections), "detections.*as the scene"),
        (lambda: Scene((4, 4), text_lines=TextLines(boxes_to_quads([[5, 5, 9, 7]]), ("a",), (1,))), "text_lines.quads"),
        (lambda: Scene((4, 4), relations=Relations(("a",), (), (), (), (), [[5, 5, 9, 7]])), "object_boxes_xyxy.*lie"),
        (lambda: Scene((4, 4), findings=["depth"]), "findings.*mapping"),
        (lambda: Scene.from_dict([]), "expects a mapping, got list"),
        (lambda: Scene.from_dict({"image_size_hw": [2, 2], "detections": [1]}), "expects a mapping"),
        (lambda: Scene.from_dict({"image_size_hw": [2, 2], "findings": [1]}), "findings.*mapping"),
        (lambda: Detections.from_dict(make_scene().relations.to_dict()), "'detections', got 'relations'"),
        (lambda: Segments.from_dict({"panoptic_map": {"run_ids": []}}), "image_size_hw.*run_lengths"),
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


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("detections", "boxes_xyxy", 0), [4, 1, 2, 3]),
        (("detections", "boxes_xyxy", 0), [1, 1, 1, 3]),
        (("detections", "boxes_xyxy", 0), [20, 1, 30, 3]),
        (("detections", "boxes_xyxy", 0), [1, 1, float("nan"), 3]),
        (("detections", "boxes_xyxy", 0), ["1", "1", "3", "3"]),
        (("detections", "confidence", 0), 1.5),
        (("detections", "class_names", 0), 3),
        (("detections", "image_size_hw"), [14, 17]),
        (("segments", "panoptic_map", "image_size_hw"), [17, 13]),
        (("segments", "panoptic_map", "run_ids", 0), 1.5),
        (("segments", "segment_ids", 0), -2),
        (("relations", "subject_indices", 0), 2),
        (("relations", "object_boxes_xyxy", 0), [1, 5, 3, 4]),
        (("text_lines", "quads", 0), [[0, 0], [0, 5], [5, 5], [5, 0]]),
        (("text_lines", "texts", 0), None),
    ],
)
def test_scene_refuses_json_when_a_value_is_wrong(path, value):
    data = json.loads(json.dumps(make_scene().to_dict()))
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValueError, match="must|expected"):
        Scene.from_dict(data)


def test_predictions_are_taken_when_they_lie_outside_by_rounding():
    found = Detections([[-0.4, -2, 5.2, 5.001]], ("a",), (1.00001,), (5, 5))
    assert found.confidence.tolist() == [1]
    assert verbalize_detections(found).endswith("[0.00, 0.00, 1.00, 1.00] a.")
    assert Detections([[1, 2, 3, 4]], ("a",), (-1e-7,), (5, 5)).confidence.tolist() == [0]
    assert Segments(np.array([[True, False]]), np.array([1]), ("a",), (1,)).panoptic_map.tolist() == [[1, 0]]


def test_segments_are_measured_at_once_when_there_are_many():
    rng = np.random.default_rng(1)
    panoptic_map = np.kron(rng.integers(-1, 40, (9, 11)), np.ones((3, 2), int))
    ids = rng.permutation(np.arange(1, 60))[:50]  # some of the map's are not listed, some listed have no pixel
    segments = Segments(panoptic_map, ids, [f"thing {i}" for i in ids], np.ones(50))
    for index, segment_id in enumerate(ids):
        mask = panoptic_map == segment_id
        assert segments.pixel_counts[index] == mask.sum()
        np.testing.assert_array_equal(segments.index_map == index, mask)
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if mask.any() else [0, 0, 0, 0]
        assert segments.boxes_xyxy[index].tolist() == box
    assert Segments(np.zeros((2, 3), int), (), (), ()).index_map.tolist() == [[-1] * 3] * 2


def test_words_are_bounded_when_thousands_of_predictions_are_handed_in():
    rng = np.random.default_rng(2)
    count, size_hw = 3000, (600, 800)
    corners = rng.uniform(0, 500, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 100, (count, 2))], axis=1)
    names, confidence = [f"thing {i % 50}" for i in range(count)], rng.uniform(0.9, 1, count)
    panoptic_map = rng.integers(1, count + 1, (60, 80)).repeat(10, axis=0).repeat(10, axis=1)
    scene = Scene(
        size_hw,
        segments=Segments(panoptic_map, range(1, count + 1), names, confidence),
        detections=Detections(boxes, names, confidence, size_hw),
        relations=Relations(names, rng.integers(0, count, count), rng.integers(0, count, count), ["on"] * count,
                            confidence, boxes),
        text_lines=TextLines(boxes_to_quads(boxes), names, confidence),
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"2,\d+ detections .* 200 of highest confidence .*max_predictions"):
        words = verbalize_scene(scene)
    with pytest.warns(UserWarning, match="3,000 detections .* the 200 surest are drawn"):
        draw_scene(scene, np.zeros((*size_hw, 3), np.uint8))
    with pytest.warns(LeftOutWarning, match="relates the 200 surest of 2,"):
        GeometricSceneGraph().relate(scene)
    select_text_lines(scene.text_lines, 0.5)
    assert words.count("thing") == 3 * 200 + 2 * 10
    # Those of highest confidence, in their order.
    surest = sorted(np.argsort(-confidence, kind="stable")[:5])
    few = WordSettings(max_predictions=5)
    with pytest.warns(UserWarning, match="other 2,995 are left out"):
        assert verbalize_finding(scene.text_lines, few).endswith(", and ".join(f'"{names[i]}"' for i in surest) + ".")
