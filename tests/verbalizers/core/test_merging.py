import numpy as np
import pytest

from verbalizers import Detections, Scene, Segments, WordSettings, verbalize_scene
from verbalizers.core.merging import find_covering, merge_detections, merge_scene
from verbalizers.core.named_objects import name_objects


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
    for words in (WordSettings(), WordSettings(detections_first=True), WordSettings(merge_iou=None)):
        assert merge_scene(scene, words) is scene


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


FIRST = WordSettings(detections_first=True, merge_iou=0.1)


def on_grass(name):
    """A thing of 20 x 20 pixels before grass that fills the rest of a 40 x 60 image."""
    panoptic_map = np.ones((40, 60), np.int32)
    panoptic_map[10:30, 10:30] = 2
    return Segments(panoptic_map, (1, 2), ("grass", name), (0.9, 0.4))


@pytest.mark.parametrize("called", ["horse", "cow"])
def test_detection_speaks_for_a_segment_when_it_comes_first_whatever_that_is_called(called):
    scene = Scene((40, 60), segments=on_grass(called), detections=detections(("horse", [9, 8, 31, 30])))
    text = verbalize_scene(scene, settings=FIRST)
    assert text.count("horse") == 1 and "cow" not in text and "[0.15, 0.20, 0.52, 0.75] horse" in text
    assert text.count("grass") == 1
    assert called in verbalize_scene(scene, ["segmentation"], settings=FIRST)  # nobody else says it
    unsure = FIRST.__class__(detections_first=True, merge_iou=0.1, detection_threshold=0.95)
    assert called in verbalize_scene(scene, settings=unsure) and "[0.15" not in verbalize_scene(scene, settings=unsure)


def test_what_stands_behind_is_kept_when_a_detection_fills_the_image():
    """Sky and grass lie inside the elephant's box, and are as much as half of it."""
    panoptic_map = np.ones((40, 60), np.int32)
    panoptic_map[20:] = 2
    panoptic_map[6:36, 12:50] = 3
    for called in ("elephant", "cow"):
        segments = Segments(panoptic_map, (1, 2, 3), ("sky", "grass", called), (0.9, 0.9, 0.5))
        found = detections(("elephant", [1, 2, 59, 39]))
        assert find_covering(segments, found, 0.1).tolist() == [-1, -1, 0]
        scene = Scene((40, 60), segments=segments, detections=found)
        objects = name_objects(scene, 0.5, 0.1, "test", detections_first=True)
        assert objects.names == ("sky", "grass", "elephant") and objects.object_map[2, 2] == 0


def test_detection_covers_one_segment_and_pieces_of_its_name():
    """Of two sheep side by side one was detected; the other's box overlaps it."""
    panoptic_map = np.zeros((40, 60), np.int32)
    panoptic_map[10:30, 5:30], panoptic_map[14:30, 24:50] = 1, 2
    both = Segments(panoptic_map, (1, 2), ("sheep", "sheep"), (0.9, 0.9))
    assert find_covering(both, detections(("sheep", [5, 10, 30, 30])), 0.1).tolist() == [0, -1]
    panoptic_map = np.zeros((40, 60), np.int32)
    panoptic_map[10:20, 5:30], panoptic_map[20:30, 5:30] = 1, 2
    halves = Segments(panoptic_map, (1, 2), ("sheep", "sheep"), (0.9, 0.9))
    assert find_covering(halves, detections(("sheep", [5, 10, 30, 30])), 0.1).tolist() == [0, 0]
    other = Segments(panoptic_map, (1, 2), ("sheep", "rider"), (0.9, 0.9))
    assert find_covering(other, detections(("sheep", [5, 10, 30, 30])), 0.1).tolist() == [0, -1]


def test_detections_that_are_not_said_leave_segments_alone():
    scene = Scene(
        (40, 60),
        segments=on_grass("cow"),
        detections=Detections([[40, 30, 50, 40], [9, 8, 31, 30]], ("fox", "cow"), (0.9, 0.6), (40, 60)),
    )
    words = WordSettings(detections_first=True, merge_iou=0.1, max_predictions=1)
    with pytest.warns(UserWarning, match="left out"):
        assert "fox" in verbalize_scene(scene, ["detection", "segmentation"], settings=words)
    assert len(merge_scene(scene, words).segments) == 2
    assert len(merge_scene(scene, WordSettings(detections_first=True, merge_iou=0.1)).segments) == 1


def test_segment_belongs_to_the_detection_of_largest_overlap_when_several_show_it():
    found = detections(("horse", [5, 5, 40, 38]), ("cow", [10, 10, 30, 29]), ("fox", [50, 30, 60, 40]))
    assert find_covering(on_grass("dog"), found, 0.1).tolist() == [-1, 1]
    assert find_covering(on_grass("dog"), found, 0.97).tolist() == [-1, -1]
    assert find_covering(on_grass("horse"), found, 0.1).tolist() == [-1, 0]  # its name comes before more overlap
    assert find_covering(on_grass("dog"), detections(), 0.1).tolist() == [-1, -1]


def test_objects_have_the_detections_name_and_the_segments_pixels_when_detections_come_first():
    scene = Scene((40, 60), segments=on_grass("cow"), detections=detections(("horse", [9, 8, 31, 30])))
    objects = name_objects(scene, 0.5, 0.1, "test", detections_first=True)
    assert objects.names == ("grass", "horse")
    np.testing.assert_array_equal(objects.boxes_xyxy[1], [9, 8, 31, 30])
    assert (objects.object_map[10:30, 10:30] == 1).all() and np.count_nonzero(objects.object_map == 1) == 400
    assert name_objects(scene, 0.5, 0.1, "test").names == ("grass", "cow", "horse")
    assert name_objects(scene, 0.95, 0.1, "test", detections_first=True).names == ("grass", "cow")


def test_word_settings_refuse_when_detections_come_first_and_nothing_is_merged():
    with pytest.raises(ValueError, match="merge_iou"):
        WordSettings(detections_first=True, merge_iou=None)
    with pytest.raises(ValueError, match="detections_first"):
        WordSettings(detections_first="yes")


def test_word_settings_refuse_when_merge_iou_is_no_overlap():
    for wrong in (0, -1, 1.5):
        with pytest.raises(ValueError, match="merge_iou"):
            WordSettings(merge_iou=wrong)
