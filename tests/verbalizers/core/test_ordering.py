"""Words in an order that a reader can rely on."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest

from moai.models.prompted.scenes_prompted import describe_compactly
from moai.scenes.scenes import Scenes
from verbalizers import (
    Detections,
    Relations,
    Scene,
    Segments,
    TextLines,
    WordSettings,
    verbalize_finding,
    verbalize_scene,
)
from verbalizers.core.merging import keep_detections, keep_segments
from verbalizers.core.ordering import keep_spoken, name_carriers, number_scene, order_finding, order_scene
from verbalizers.core.structures import SCENE_FIELDS

ORDERED = WordSettings(order_by_name=True, locate_text=True, max_relations=20)


def shuffled(scene, rng):
    """The same findings, in another order."""
    segments, detections, relations = scene.segments, scene.detections, scene.relations
    rows = rng.sample(range(len(relations)), len(relations))
    objects = rng.sample(range(len(relations.object_names)), len(relations.object_names))
    return replace(
        scene,
        segments=keep_segments(segments, rng.sample(range(len(segments)), len(segments))),
        detections=keep_detections(detections, rng.sample(range(len(detections)), len(detections))),
        relations=Relations(
            object_names=tuple(relations.object_names[k] for k in objects),
            subject_indices=[objects.index(relations.subject_indices[k]) for k in rows],
            object_indices=[objects.index(relations.object_indices[k]) for k in rows],
            predicates=tuple(relations.predicates[k] for k in rows),
            confidence=relations.confidence[rows],
            object_boxes_xyxy=relations.object_boxes_xyxy[objects],
        ),
    )


@pytest.mark.parametrize("said", [verbalize_scene, describe_compactly])
def test_words_are_the_same_when_findings_come_in_another_order(said):
    def words(scene, settings):
        return said(scene, settings=settings) if said is verbalize_scene else said(scene, settings)

    changed = 0
    for sample in Scenes("validation", image_size=96, num_objects=(3, 9), num_questions=0, length=12):
        other = shuffled(sample.truth, Random(sample.index))
        assert words(other, ORDERED) == words(sample.truth, ORDERED) == words(order_scene(other), ORDERED)
        as_found = replace(ORDERED, order_by_name=False)
        changed += words(other, as_found) != words(sample.truth, as_found)
        # Nothing is lost or added: the same items, apart from the numbers of equal names.
        plain = [sorted(words(other, settings).replace(".", " ").split()) for settings in (ORDERED, as_found)]
        if "(#" not in words(other, ORDERED):
            assert sorted(c for item in plain[0] for c in item) == sorted(c for item in plain[1] for c in item)
    assert changed > 6


def test_equal_names_stand_together_from_left_to_right():
    boxes = [[60, 0, 70, 9], [10, 0, 20, 9], [30, 0, 40, 9], [0, 0, 5, 9]]
    found = Detections(boxes, ("dog", "Cat", "dog", "tree-merged"), np.full(4, 0.9), (100, 100))
    ordered = order_finding(found)
    assert ordered.class_names == ("Cat", "dog", "dog", "tree-merged") and ordered.boxes_xyxy[1:3, 0].tolist() == [
        30,
        60,
    ]
    said = verbalize_finding(found, WordSettings(order_by_name=True))
    assert said.index("Cat") < said.index("0.30, 0.00") < said.index("0.60, 0.00") < said.index("tree")
    said = verbalize_scene(Scene((100, 100), detections=found), settings=WordSettings(order_by_name=True))
    assert "[0.30, 0.00, 0.40, 0.09] dog (#1), and [0.60, 0.00, 0.70, 0.09] dog (#2)" in said and "Cat," in said
    assert verbalize_finding(found, WordSettings(order_by_name=True), compat=True) == verbalize_finding(
        found, compat=True
    )


def test_a_thing_has_one_number_in_all_sentences():
    panoptic = np.zeros((100, 100), np.int32)
    panoptic[40:60, 40:60] = 1
    segments = Segments(panoptic, (1,), ("dog",), np.ones(1))
    detections = Detections([[80, 0, 99, 20], [0, 0, 20, 20]], ("dog", "dog"), np.ones(2), (100, 100))
    relations = Relations(  # the rightmost alone, and one that nobody else found
        object_names=("dog", "dog", "grass"),
        subject_indices=[0, 1],
        object_indices=[2, 2],
        predicates=("on", "near"),
        confidence=[0.9, 0.95],
        object_boxes_xyxy=[[79, 0, 99, 21], [20, 70, 30, 90], [0, 50, 99, 99]],
    )
    scene = Scene((100, 100), segments=segments, detections=detections, relations=relations)
    said = verbalize_scene(scene, settings=replace(ORDERED, merge_iou=None))
    assert "[0.40, 0.40, 0.60, 0.60] dog (#2)." in said  # the segmenter's stands between the detector's two
    assert "0.20] dog (#1), and [0.80, 0.00, 0.99, 0.20] dog (#3)." in said
    assert said.endswith("dog (#4) is near grass, and dog (#3) is on grass.")  # no other dog has its number
    lone = replace(scene, segments=None, detections=keep_detections(detections, [0]))
    assert "dog (#1)." in verbalize_scene(lone, settings=ORDERED)
    assert verbalize_scene(lone, settings=ORDERED).endswith("dog (#2) is near grass, and dog (#1) is on grass.")
    unknown = replace(lone, relations=replace(relations, object_names=("dog", "", "")))
    assert "relationships" not in verbalize_scene(unknown, settings=ORDERED)
    alone = verbalize_scene(scene, ["scene_graph"], settings=ORDERED)
    assert alone.endswith("dog (#1) is near grass, and dog (#2) is on grass.")  # as where nothing else is said
    compact = describe_compactly(scene, replace(ORDERED, merge_iou=None)).splitlines()
    assert (
        compact[0] == "objects: 3 dog" and compact[1].startswith("boxes: dog (#2) 0.40") and "dog (#3) on" in compact[2]
    )


@pytest.mark.parametrize("has_boxes", [True, False])
def test_relations_stand_by_subject_the_surest_of_each_first_when_only_some_are_said(has_boxes):
    relations = Relations(
        object_names=("zebra", "ant", "grass", "ant"),
        subject_indices=[0, 1, 3, 0],
        object_indices=[2, 2, 2, 1],
        predicates=("on", "on", "near", "beside"),
        confidence=np.array([0.9, 0.85, 0.8, 0.95], np.float32),
        object_boxes_xyxy=[[0, 0, 9, 9], [50, 0, 60, 9], [0, 50, 99, 99], [10, 0, 20, 9]] if has_boxes else None,
    )
    settings = WordSettings(order_by_name=True)
    numbers = ("#1", "#2") if has_boxes else ("#2", "#1")  # without boxes as they were found
    said = verbalize_finding(relations, settings).split("objects: ")[1].rstrip(".").split(", and ")
    assert sorted(said[:2]) == sorted([f"ant ({numbers[0]}) is near grass", f"ant ({numbers[1]}) is on grass"])
    assert said[2:] == [f"zebra is beside ant ({numbers[1]})", "zebra is on grass"] and said[:2] == sorted(said[:2])
    few = verbalize_finding(relations, replace(settings, max_relations=2))
    assert "beside" in few and "zebra is on grass" in few and "near" not in few  # the surest, whoever comes first
    scene = Scene((100, 100), relations=relations)
    compact = describe_compactly(scene, replace(settings, max_relations=2)).split("relations: ")[1].split("\n")[0]
    assert compact == f"zebra beside ant ({numbers[1]}); zebra on grass"


def write_on(quads, texts=None):
    texts = texts or tuple(f"T{k}" for k in range(len(quads)))
    return TextLines(quads, texts, np.ones(len(texts)))


def box_quad(x0, y0, x1, y1):
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


SIGNS = Detections(
    [[60, 10, 95, 60], [5, 20, 40, 70], [70, 12, 80, 22]], ("sign", "sign", "clock"), np.ones(3), (100, 100)
)
LINES = write_on([box_quad(*b) for b in ([10, 30, 30, 35], [72, 14, 78, 18], [62, 40, 90, 45], [45, 80, 55, 90])])


def carriers(scene, settings=ORDERED, kinds=tuple(SCENE_FIELDS)):
    spoken = keep_spoken(scene, kinds, settings)
    return name_carriers(number_scene(order_scene(spoken)) if settings.order_by_name else spoken)


def test_lines_name_the_smallest_thing_around_them_by_its_number():
    scene = Scene((100, 100), detections=SIGNS, text_lines=LINES)
    assert carriers(scene) == ["sign (#1)", "clock", "sign (#2)", ""]
    assert carriers(scene, replace(ORDERED, order_by_name=False)) == ["sign", "clock", "sign", ""]
    said = verbalize_scene(scene, settings=ORDERED)
    assert '"T0" on sign (#1), and' in said and '"T1" on clock' in said and said.endswith('0.55, 0.90] "T3".')
    assert " on " not in verbalize_scene(scene, settings=replace(ORDERED, locate_text=False))
    assert " on " not in verbalize_scene(scene, settings=ORDERED, compat=True)
    compact = describe_compactly(scene, ORDERED)
    assert '"T0" 0.10 0.30 0.30 0.35 on sign (#1)' in compact and compact.endswith('"T3" 0.45 0.80 0.55 0.90')
    unsure = replace(scene, detections=replace(SIGNS, confidence=np.full(3, 0.1, np.float32)))
    assert carriers(unsure) == [""] * 4  # nobody is told of them


def test_lines_name_the_segment_under_them_when_no_detection_is_there():
    panoptic = np.zeros((100, 100), np.int32)
    panoptic[60:] = 7
    segments = Segments(panoptic, (7,), ("wall-brick-merged",), np.ones(1))
    scene = Scene((100, 100), segments=segments, detections=SIGNS, text_lines=LINES)
    assert carriers(scene)[-1] == "wall-brick"
    # What is not said cannot carry anything: a kind that was left out stays out.
    for kinds in (["ocr"], ["segmentation", "ocr"], ["detection", "ocr"]):
        said = verbalize_scene(scene, kinds, settings=ORDERED).split("text descriptions: ")[1]
        assert ("sign" in said) == ("detection" in kinds) and ("wall" in said) == ("segmentation" in kinds)
        compact = describe_compactly(scene, ORDERED, kinds).split("text: ")[1]
        assert ("sign" in compact) == ("detection" in kinds) and ("wall" in compact) == ("segmentation" in kinds)
    nothing = Scene((100, 100), text_lines=write_on(np.zeros((0, 4, 2)), ()))
    assert carriers(nothing) == [] == carriers(Scene((9, 9)))
    outside = Scene((100, 100), segments=segments, text_lines=write_on([box_quad(90, 95, 140, 140)]))
    assert carriers(outside) == ["wall-brick"]


def test_signs_carry_their_own_words_in_scenes():
    asked = 0
    for sample in Scenes(
        "validation", image_size=224, num_objects=(0, 4), num_questions=0, sign_probability=1.0, length=60
    ):
        names = carriers(sample.truth)
        assert all(name.startswith("sign") for name in names), names
        several = {name for name in names if "#" in name}
        asked += len(several) > 1
    assert asked > 5


def test_findings_without_an_order_stay_when_asked():
    assert order_finding("a sentence") == "a sentence" and order_finding(None) is None
    empty = Detections(np.zeros((0, 4)), (), np.zeros(0), (10, 10))
    assert len(order_finding(empty)) == 0
    nothing = Relations((), [], [], (), np.zeros(0, np.float32), np.zeros((0, 4), np.float32))
    assert len(order_finding(nothing)) == 0
    with pytest.raises(ValueError, match="order_by_name"):
        WordSettings(order_by_name="yes")
