import numpy as np
import pytest
from PIL import Image

from verbalizers import Detections, Relations, Scene, Segments, TextLines, draw_scene

SIZE_HW = (120, 160)


def make_scene(with_boxes=True) -> Scene:
    panoptic_map = np.zeros(SIZE_HW, dtype=np.int32)
    panoptic_map[60:] = 1
    boxes = [[10, 10, 50, 50], [90, 70, 150, 119]]
    return Scene(
        SIZE_HW,
        segments=Segments(panoptic_map, (1,), ("grass-merged",), (0.9,)),
        detections=Detections([*boxes, [-20, -20, 500, 500]], ("kite", "dog", "all"), (0.9, 0.8, 0.7), SIZE_HW),
        relations=Relations(("kite", "dog"), (0,), (1,), ("over",), (0.9,), boxes if with_boxes else None),
        text_lines=TextLines([[[60, 20], [110, 20], [110, 35], [60, 35]]], ("STOP",), (0.9,)),
    )


@pytest.mark.parametrize("ground", [0, 255])
@pytest.mark.parametrize("with_boxes", [True, False])
def test_draw_keeps_contrast_when_ground_is_dark_or_light(ground, with_boxes):
    plain = np.full((*SIZE_HW, 3), ground, dtype=np.uint8)
    drawn = np.asarray(draw_scene(make_scene(with_boxes), plain)).astype(int)
    assert drawn.shape == plain.shape
    assert (plain == ground).all(), "the input must stay as it was"
    # The detection's left edge: next to the coloured line stands its halo, and one of both differs strongly
    # from any ground.
    edge = drawn[25:45, 7:14].reshape(-1, 3)
    assert np.abs(edge - ground).max() > 150
    assert len(np.unique(edge, axis=0)) >= 3 if ground else len(np.unique(edge, axis=0)) >= 2


def test_draw_paints_masks_only_where_segments_are():
    scene = Scene(SIZE_HW, segments=make_scene().segments)
    drawn = np.asarray(draw_scene(scene, np.full((*SIZE_HW, 3), 100, np.uint8)))
    assert (drawn[:58] == 100).all()
    assert (drawn[100:] != 100).any(axis=2).mean() > 0.9


def test_draw_points_from_subject_to_object_when_relation_is_drawn():
    black = np.zeros((*SIZE_HW, 3), np.uint8)
    relations = make_scene().relations
    there = np.asarray(draw_scene(Scene(SIZE_HW, relations=relations), black))
    swapped = Relations(("kite", "dog"), (1,), (0,), ("over",), (0.9,), relations.object_boxes_xyxy)
    back = np.asarray(draw_scene(Scene(SIZE_HW, relations=swapped), black))
    head, tail = (slice(84, 104), slice(108, 128)), (slice(22, 40), slice(22, 40))
    assert there[head].sum() > back[head].sum()
    assert back[tail].sum() > there[tail].sum()


@pytest.mark.parametrize("size_hw", [(1, 1), (3, 500), (2000, 20)])
def test_draw_survives_when_image_is_odd(size_hw):
    box = [[0, 0, size_hw[1], size_hw[0]]]
    scene = Scene(
        size_hw,
        segments=Segments(np.ones(size_hw, int), (1,), ("a very long name indeed",), (1,)),
        detections=Detections(box, ("x",), (1,), size_hw),
        relations=Relations(("x",), (0,), (0,), ("on",), (1,), box),
    )
    assert draw_scene(scene, Image.new("L", size_hw[::-1])).size == size_hw[::-1]


def test_draw_refuses_when_image_is_another_size():
    with pytest.raises(ValueError, match="that was parsed"):
        draw_scene(make_scene(), Image.new("RGB", (10, 10)))
