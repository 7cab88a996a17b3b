import numpy as np
import pytest

from verbalizers import Detections, Scene, Segments, WordSettings, verbalize_scene
from verbalizers.core.merging import merge_detections, merge_scene


def segments(*names):
    """One upright band per name on a 40 x 60 image, id 2 first, with a row of nothing below."""
    panoptic_map = np.zeros((40, 60), np.int32)
    width = 60 // len(names)
    for index in range(len(names)):
        panoptic_map[:30, index * width : (index + 1) * width] = index + 2
    return Segments(panoptic_map, tuple(range(2, len(names) + 2)), names, np.ones(len(names), np.float32))


def detections(*entries):
    boxes, names = [entry[1] for entry in entries], tuple(entry[0] for entry in entries)
    return Detections(boxes, names, np.full(len(names), 0.9, np.float32), (40, 60))


def test_merge_drops_detection_when_a_segment_means_the_same():
    found = detections(
        ("sofa", [0, 0, 29, 30]),  # synonym, almost the same box
        ("teapot", [0, 0, 30, 30]),  # same box, other thing
        ("Cats", [31, 1, 60, 30]),  # plural of the other segment
        ("cat", [0, 0, 30, 30]),  # a second cat, where the segmenter saw the couch
        ("", [0, 0, 30, 30]),
    )
    kept = merge_detections(segments("couch", "cat"), found, 0.5)
    assert kept.class_names == ("teapot", "cat", "")
    np.testing.assert_array_equal(kept.boxes_xyxy, found.boxes_xyxy[[1, 3, 4]])
    assert kept.image_size_hw == found.image_size_hw


def test_merge_follows_overlap_when_boxes_shrink():
    """A box of a segment's left part overlaps it by exactly its share."""
    one = segments("cat")
    for share in (0.25, 0.5, 0.75, 1.0):
        found = detections(("cat", [0, 0, 60 * share, 30]))
        for min_iou in (0.2, 0.4, 0.6, 0.9):
            assert len(merge_detections(one, found, min_iou)) == (share < min_iou)


def test_merge_returns_what_it_got_when_there_is_nothing_to_merge():
    found = detections(("fox", [0, 0, 30, 30]))
    assert merge_detections(None, found, 0.5) is found
    assert merge_detections(segments("cat"), None, 0.5) is None
    assert merge_detections(segments("cat"), found, 0.5) is found
    scene = Scene((40, 60), segments=segments("cat"), detections=found)
    assert merge_scene(scene, 0.5) is scene


def test_merge_ignores_segment_when_it_has_no_pixels():
    empty = Segments(np.zeros((40, 60), np.int32), (1,), ("cat",), (1.0,))
    found = detections(("cat", [0, 0, 1, 1]))
    assert merge_detections(empty, found, 0.01) is found


def test_words_repeat_no_detection_when_merging_and_do_when_not():
    scene = Scene(
        (40, 60), segments=segments("couch"), detections=detections(("sofa", [0, 0, 60, 30]), ("fox", [0, 0, 9, 9]))
    )
    merged = verbalize_scene(scene)
    assert "couch" in merged and "fox" in merged and "sofa" not in merged
    assert "sofa" in verbalize_scene(scene, settings=WordSettings(merge_iou=None))
    assert "sofa" in verbalize_scene(scene, compat=True)
    # Asked for the detections alone, one hears all of them: nobody has said the segments.
    assert "sofa" in verbalize_scene(scene, kinds=["detection"])
    assert len(scene.detections) == 2


def test_word_settings_refuse_when_merge_iou_is_no_overlap():
    for wrong in (0, -1, 1.5):
        with pytest.raises(ValueError, match="merge_iou"):
            WordSettings(merge_iou=wrong)
