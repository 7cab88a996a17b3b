"""Adapters on results of the real libraries where installed, else on objects with the documented attributes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from verbalizers import build_verbalizer
from verbalizers.core.adapters import (
    boxes_to_quads,
    detections_from_supervision,
    detections_from_transformers,
    detections_from_ultralytics,
    relations_from_psgtr,
    relations_from_triplets,
    segments_from_masks,
    segments_from_supervision,
    segments_from_transformers,
    text_lines_from_paddleocr,
    text_lines_from_rapidocr,
)
from verbalizers.core.boxes import box_iou


def test_segments_from_transformers_makes_room_when_ids_start_at_zero():
    result = {
        "segmentation": torch.tensor([[-1, 0], [1, 1]]),
        "segments_info": [{"id": 0, "label_id": 1, "score": 0.5}, {"id": 1, "label_id": 7, "score": 0.75}],
    }
    segments = segments_from_transformers(result, {0: "a", 1: "b", 7: ""})
    assert segments.panoptic_map.tolist() == [[0, 1], [2, 2]]
    assert segments.class_names == ("b", "")
    assert segments.confidence.tolist() == [0.5, 0.75]


def test_segments_from_transformers_is_empty_when_segmentation_is_none():
    result = {"segmentation": None, "segments_info": []}
    assert segments_from_transformers(result, image_size_hw=(3, 4)).image_size_hw == (3, 4)
    with pytest.raises(ValueError, match="image_size_hw"):
        segments_from_transformers(result)


def test_segments_from_masks_gives_overlap_to_the_surer_when_masks_meet():
    masks = np.zeros((2, 4, 4), dtype=bool)
    masks[0, :3] = True
    masks[1, 2:] = True
    segments = segments_from_masks(masks, ("low", "high"), (0.3, 0.9))
    assert segments.pixel_counts.tolist() == [8, 8]
    assert segments.boxes_xyxy.tolist() == [[0, 0, 4, 2], [0, 2, 4, 4]]


def test_supervision_round_trip_when_installed():
    sv = pytest.importorskip("supervision")
    masks = np.zeros((2, 6, 8), dtype=bool)
    masks[0, :2], masks[1, 4:] = True, True
    found = sv.Detections(
        xyxy=np.array([[0.0, 0, 8, 2], [0, 4, 8, 6]]), mask=masks, confidence=np.array([0.5, 0.75]),
        class_id=np.array([1, 0]), data={"class_name": np.array(["dog", "cat"])},
    )  # fmt: skip
    detections = detections_from_supervision(found, (6, 8))
    assert detections.class_names == ("dog", "cat")
    assert detections.boxes_xyxy.tolist() == found.xyxy.tolist()
    assert segments_from_supervision(found, (6, 8)).class_names == ("dog", "cat")
    found.data = {}
    assert detections_from_supervision(found, (6, 8), ["cat", "dog"]).class_names == ("dog", "cat")
    with pytest.raises(ValueError, match="class_names"):
        detections_from_supervision(found, (6, 8))
    assert len(detections_from_supervision(sv.Detections.empty(), (6, 8))) == 0


def test_detections_from_ultralytics_reads_attributes_when_on_tensors():
    boxes = SimpleNamespace(
        xyxy=torch.tensor([[0.0, 1, 2, 3]]), conf=torch.tensor([0.5], dtype=torch.bfloat16), cls=torch.tensor([2.0])
    )
    result = SimpleNamespace(boxes=boxes, names={2: "kite"}, orig_shape=(10, 20))
    found = detections_from_ultralytics(result)
    assert (found.class_names, found.image_size_hw, found.confidence.tolist()) == (("kite",), (10, 20), [0.5])
    assert len(detections_from_ultralytics(SimpleNamespace(boxes=None, names={}, orig_shape=(10, 20)))) == 0


def psgtr_result():
    dists = torch.zeros(2, 4)
    dists[0, 0], dists[0, 2], dists[1, 3] = 0.9, 0.6, 0.8
    return {
        "labels": torch.tensor([1, 2, 3]),
        "rel_pair_idxes": torch.tensor([[0, 1], [2, 0]]),
        "rel_dists": dists,
        "refine_bboxes": torch.arange(15.0).reshape(3, 5),
    }


def test_relations_from_psgtr_ignores_column_zero_when_reading_scores():
    found = relations_from_psgtr(psgtr_result(), ("cat", "dog", ""), ("on", "in", "under"))
    assert found.object_names == ("cat", "dog", "")
    assert found.predicates == ("in", "under")
    np.testing.assert_allclose(found.confidence, [0.6, 0.8], rtol=1e-6)
    assert found.object_boxes_xyxy.tolist() == [[0, 1, 2, 3], [5, 6, 7, 8], [10, 11, 12, 13]]
    attributes = relations_from_psgtr(SimpleNamespace(**psgtr_result()), ("cat", "dog", ""), ("on", "in", "under"))
    assert attributes == found


def test_relations_from_psgtr_are_empty_when_no_triplet_is_kept():
    result = {
        "labels": torch.zeros(0, dtype=torch.long),
        "rel_pair_idxes": torch.zeros(0, 2, dtype=torch.long),
        "rel_dists": torch.zeros(0, 4),
        "refine_bboxes": torch.zeros(0, 4),
    }
    found = relations_from_psgtr(result, ("cat", "dog"), ("on", "in", "under"))
    assert len(found) == 0 and found.object_names == () and found.object_boxes_xyxy.shape == (0, 4)


def test_relations_from_psgtr_tells_two_predicates_of_one_query_apart_when_rels_say_so():
    dists = np.array([[0.1, 0.5, 0.4]] * 2, dtype=np.float32)
    result = {
        "labels": np.array([1, 2]), "rel_pair_idxes": np.array([[0, 1], [0, 1]]), "rel_dists": dists,
        "rels": np.array([[0, 1, 1], [0, 1, 2]]), "refine_bboxes": np.zeros((7, 5)),
    }  # fmt: skip
    found = relations_from_psgtr(result, ("cat", "dog"), ("on", "in"))
    assert found.predicates == ("on", "in")
    np.testing.assert_allclose(found.confidence, [0.5, 0.4])
    assert found.object_boxes_xyxy is None, "seven candidates' boxes are not those of two objects"
    assert relations_from_psgtr(result, ("cat", "dog"), ("on", "in"), compat=True).predicates == ("on", "on")


def test_triplet_door_takes_any_model_when_result_is_documented():
    door = build_verbalizer(
        "scene_graph", "triplets", model=lambda images: [psgtr_result() for _ in images], name="mine",
        class_names=("cat", "dog", "eel"), predicates=("on", "in", "under"),
    )  # fmt: skip
    found = door.predict([np.zeros((4, 4, 3), np.uint8)] * 2)
    assert found == [relations_from_psgtr(psgtr_result(), ("cat", "dog", "eel"), ("on", "in", "under"))] * 2
    assert len(found[0]) > 0
    ready = build_verbalizer("scene_graph", "triplets", model=lambda images: [found[0]], name="mine")
    assert ready.predict([None]) == [found[0]]
    with pytest.raises(ValueError, match="callable"):
        build_verbalizer("scene_graph", "triplets", model="psgtr", name="mine")


def test_relations_from_triplets_gives_certainty_when_scores_are_left_out():
    found = relations_from_triplets([(0, "on", 1), (1, "under", 0, 0.5)], ("cat", "mat"))
    assert found.confidence.tolist() == [1.0, 0.5]
    assert len(relations_from_triplets([], ())) == 0


SIZE = (10, 20)


def from_transformers(boxes=((0, 1, 2, 3),), labels=(0,), scores=(0.5,), names=("cat", "dog")):
    return detections_from_transformers({"boxes": boxes, "labels": labels, "scores": scores}, names, SIZE)


def from_ultralytics(boxes=((0.0, 1, 2, 3),), labels=(0.0,), scores=(0.5,), names=("cat",)):
    found = SimpleNamespace(xyxy=torch.tensor(boxes), conf=torch.tensor(scores), cls=torch.tensor(labels))
    return detections_from_ultralytics(SimpleNamespace(boxes=found, names=dict(enumerate(names)), orig_shape=SIZE))


def from_supervision(boxes=((0, 1, 2, 3),), labels=(0,), scores=(0.5,), names=("cat",), data=None, mask=None):
    found = SimpleNamespace(
        xyxy=np.array(boxes), confidence=np.array(scores), class_id=np.array(labels), data=data or {}, mask=mask
    )
    if mask is not None:
        return segments_from_supervision(found, SIZE, names)
    return detections_from_supervision(found, SIZE, names)


def from_panoptic(segmentation=((0, 1), (1, 2)), ids=(1, 2), labels=(0, 1), scores=(0.5, 0.5), size=None):
    info = [{"id": i, "label_id": b, "score": s} for i, b, s in zip(ids, labels, scores, strict=True)]
    return segments_from_transformers({"segmentation": segmentation, "segments_info": info}, ("cat", "dog"), (), size)


def from_psgtr(predicates=("on", "in", "under"), **changes):
    return relations_from_psgtr({**psgtr_result(), **changes}, ("cat", "dog", "eel"), predicates)


@pytest.mark.parametrize("build", [from_transformers, from_ultralytics, from_supervision])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"boxes": ((2.0, 1, 0, 3),)}, "right > left"),
        ({"boxes": ((2.0, 1, 2, 3),)}, "without area"),
        ({"boxes": ((21.0, 1, 25, 3),)}, "lie in the image"),
        ({"boxes": ((float("nan"), 1, 2, 3),)}, "finite"),
        ({"boxes": (0.0, 1, 2, 3)}, "shape"),
        ({"labels": (1.5,)}, "whole numbers"),
        ({"labels": (2,)}, "class ids with a name.*got 2"),
        ({"labels": (-1,)}, "got -1"),
        ({"names": (None,)}, "strings, got NoneType"),
        ({"scores": (1.5,)}, r"\[0, 1\]"),
        ({"scores": (0.5, 0.5)}, "shape"),
    ],
)
def test_detection_adapters_refuse_what_is_no_prediction(build, wrong, message):
    assert build().class_names == ("cat",)
    with pytest.raises(ValueError, match=message):
        build(**wrong)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: from_panoptic(labels=(0, 2)), "got 2"),
        (lambda: from_panoptic(labels=(0, -1)), "got -1"),
        (lambda: from_panoptic(scores=(0.5, 7.0)), "sigmoid"),
        (lambda: from_panoptic(ids=(1, 1.5)), "whole numbers"),
        (lambda: from_panoptic(segmentation=np.array([[0.5, 1], [1, 2]])), "integer ids"),
        (lambda: from_panoptic(segmentation=np.array([[np.nan, 1], [1, 2]])), "integer ids"),
        (lambda: from_panoptic(size=(3, 2)), r"segmentation.*\(3, 2\).*got \(2, 2\)"),
        (lambda: segments_from_masks(np.ones((1, 4, 4), bool), ("a",), (1,), (4, 5)), r"masks.*\(4, 5\)"),
        (lambda: segments_from_masks(np.full((1, 4, 4), 0.7), ("a",), (1,)), "True or False, got float64"),
        (lambda: segments_from_masks(np.ones((4, 4), bool), ("a",) * 4, (1,) * 4), r"mask\[None\]"),
        (lambda: segments_from_masks(np.ones((2, 4, 4), bool), ("a", "b"), (1,)), "shape"),
        (lambda: segments_from_masks(np.ones((2, 4, 4), bool), ("a",), (1, 1)), "2 entries"),
        (lambda: segments_from_masks(np.ones((1, 4, 4), bool), ("a",), (3,)), "sigmoid"),
        (lambda: from_supervision(data={"class_name": [3]}), "strings, got int"),
        (lambda: from_supervision(mask=np.ones((1, 9, 20), bool)), "masks.*got"),
        (lambda: from_psgtr(labels=[1, 2, 4]), "got 4"),
        (lambda: from_psgtr(labels=[0, 2, 3]), "got 0"),
        (lambda: from_psgtr(rel_pair_idxes=[[0, 1], [3, 0]]), "subject_indices"),
        (lambda: from_psgtr(rel_pair_idxes=[[0, 1], [1, 0.5]]), "whole numbers"),
        (lambda: from_psgtr(rel_dists=torch.full((2, 4), 2.0)), "sigmoid"),
        (lambda: from_psgtr(rels=[[0, 1, 0], [2, 0, 3]]), "got 0"),
        (lambda: from_psgtr(rels=[[0, 1, 1], [2, 0, 4]]), "got 4"),
        (lambda: from_psgtr(refine_bboxes=torch.ones(3, 4)), "without area"),
        (lambda: relations_from_triplets([(0, "on", 2)], ("a", "b")), "object_indices"),
        (lambda: relations_from_triplets([(0, "on", 1)], ("a", "b"), [[0, 0, 1, 1], [3, 0, 1, 1]]), "right > left"),
        (lambda: relations_from_triplets([(0, 5, 1)], ("a", "b")), "strings"),
        (lambda: text_lines_from_paddleocr([[[[0, 0], [0, 2], [4, 2], [4, 0]], ("hi", 0.5)]]), "clockwise"),
        (lambda: text_lines_from_paddleocr([[[[0, 0], [4, 0], [4, 2], [0, 2]], ("hi", 5)]]), "sigmoid"),
        (lambda: text_lines_from_paddleocr([[[[0, 0], [4, 0], [4, 2], [0, 2]], (None, 0.5)]]), "strings"),
        (
            lambda: text_lines_from_rapidocr(SimpleNamespace(boxes=np.ones((1, 4, 2)), txts=("hi",), scores=(0.5,))),
            "around an area",
        ),
    ],
)
def test_adapters_refuse_what_is_no_prediction(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_adapters_take_whole_numbers_when_they_are_floats():
    assert from_panoptic(np.array([[0.0, 1], [1, 2]])) == from_panoptic(torch.tensor([[0, 1], [1, 2]]))
    assert from_transformers(labels=np.float32([1])).class_names == ("dog",)
    assert segments_from_masks(np.ones((1, 2, 2)), ("a",), (1,)).pixel_counts.tolist() == [4]


def test_text_lines_from_rapidocr_is_empty_when_nothing_was_read():
    assert len(text_lines_from_rapidocr(SimpleNamespace(boxes=None, txts=None, scores=None))) == 0
    output = SimpleNamespace(boxes=boxes_to_quads([[0, 0, 4, 2]]), txts=("hi",), scores=(0.5,))
    assert text_lines_from_rapidocr(output).texts == ("hi",)


def test_text_lines_from_paddleocr_reads_both_versions_when_given():
    quad = [[0, 0], [4, 0], [4, 2], [0, 2]]
    old = text_lines_from_paddleocr([[quad, ("hi", 0.5)]])
    new = text_lines_from_paddleocr({"rec_texts": ["hi"], "rec_scores": [0.5], "rec_polys": [np.array(quad)]})
    assert old == new
    assert len(text_lines_from_paddleocr({"rec_texts": [], "rec_scores": [], "rec_polys": []})) == 0


def test_text_lines_begin_at_the_text_when_they_were_turned_to_be_read():
    first, second = boxes_to_quads([[0, 0, 90, 9], [0, 20, 90, 29]])
    output = SimpleNamespace(boxes=np.stack([first, second]), txts=("a", "b"), scores=(0.9, 0.9))
    found = text_lines_from_rapidocr(output, [True, False])
    np.testing.assert_array_equal(found.quads, [np.roll(first, 2, axis=0), second])
    # paddleocr tells of all that it detected, and reads less.
    page = {"rec_texts": ["b"], "rec_scores": [0.9], "rec_polys": [second], "dt_polys": [first, second]}
    for angles, wanted in (([0, 1], np.roll(second, 2, axis=0)), ([1, 0], second), ([-1, -1], second)):
        found = text_lines_from_paddleocr({**page, "textline_orientation_angles": angles})
        np.testing.assert_array_equal(found.quads[0], wanted)


def test_boxes_convert_and_overlap_when_computed_by_hand():
    assert boxes_to_quads([[1, 2, 3, 4]]).tolist() == [[[1, 2], [3, 2], [3, 4], [1, 4]]]
    iou = box_iou([[0, 0, 2, 2], [5, 5, 5, 5]], [[1, 1, 3, 3], [0, 0, 2, 2], [5, 5, 5, 5]])
    np.testing.assert_allclose(iou, [[1 / 7, 1, 0], [0, 0, 0]], rtol=1e-6)
