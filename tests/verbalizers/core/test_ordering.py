"""Words in an order that a reader can rely on."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest

from moai.models.prompted.scenes_prompted import describe_compactly
from moai.scenes.scenes import Scenes
from verbalizers import Detections, Relations, Scene, WordSettings, verbalize_finding, verbalize_scene
from verbalizers.core.merging import keep_detections, keep_segments
from verbalizers.core.ordering import order_finding, order_scene

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
        if "(#" not in words(other, as_found):
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
    assert verbalize_finding(found, WordSettings(order_by_name=True), compat=True) == verbalize_finding(
        found, compat=True
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


def test_findings_without_an_order_stay_when_asked():
    assert order_finding("a sentence") == "a sentence" and order_finding(None) is None
    empty = Detections(np.zeros((0, 4)), (), np.zeros(0), (10, 10))
    assert len(order_finding(empty)) == 0
    nothing = Relations((), [], [], (), np.zeros(0, np.float32), np.zeros((0, 4), np.float32))
    assert len(order_finding(nothing)) == 0
    with pytest.raises(ValueError, match="order_by_name"):
        WordSettings(order_by_name="yes")
