"""Counts of relations: the truth gets everything, known mistakes cost what they should, geometry is measured."""

from dataclasses import replace

import numpy as np
import pytest

from moai.evaluation.relations_benchmark import RelationCounts, count_relations, main
from moai.scenes.scenes import Scenes
from verbalizers import Relations

BOXES = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [0, 20, 40, 40]], np.float32)


def graph(*triplets, names=("cat", "dog", "road"), boxes=BOXES):
    subjects, predicates, objects = zip(*triplets, strict=True) if triplets else ((), (), ())
    return Relations(names, subjects, objects, predicates, np.ones(len(predicates)), boxes)


TRUTH = graph((0, "beside", 1), (0, "walking on", 2), (1, "holding", 0))


def count(truth, found):
    counts = RelationCounts()
    counts.update(truth, found)
    return {name: numbers for name, *numbers in counts.rows()}


def test_truth_gets_everything_when_it_is_found():
    rows = count(TRUTH, TRUTH)
    assert rows["beside"] == [1, 1, 1, 1, 1] and rows["on"] == [1, 1, 1, 1, 1] and rows["all five"] == [2, 2, 2, 2, 2]


def test_beside_counts_in_both_directions_and_on_in_one():
    rows = count(TRUTH, graph((1, "beside", 0), (2, "on", 0)))
    assert rows["beside"] == [1, 1, 1, 1, 1] and rows["on"] == [1, 0, 1, 0, 1]


def test_pairs_that_the_truth_does_not_speak_about_are_neither_right_nor_wrong():
    assert count(TRUTH, graph((1, "on", 2)))["on"] == [1, 0, 0, 0, 1]


@pytest.mark.parametrize("other", [{"boxes": BOXES + 15}, {"names": ("cow", "dog", "road")}])
def test_objects_are_others_when_boxes_or_names_differ(other):
    assert count(TRUTH, graph((0, "on", 2), **other))["on"] == [1, 0, 0, 0, 1]


def test_geometry_finds_most_of_what_it_can_show_when_masks_are_true(capsys):
    """Nine of ten, where guessing any predicate for any pair would find a few."""
    samples = list(Scenes("validation", num_questions=1, length=60))
    ((name, counts),) = count_relations(samples).items()
    *_, (_, asked, right, judged, agreed, _) = counts.rows()
    assert name == "scene_graph/geometric" and asked > 100
    assert right / asked > 0.85 and agreed / judged > 0.75
    main(["--scenes", "2"])
    assert "| scene_graph/geometric | all five |" in capsys.readouterr().out


def test_geometry_is_lost_when_masks_belong_to_another_scene():
    samples = list(Scenes("validation", num_questions=1, length=20))
    for sample, other in zip(samples, reversed(samples[10:]), strict=False):
        truth = replace(sample.truth, segments=other.truth.segments, detections=other.truth.detections)
        object.__setattr__(sample, "truth", replace(truth, relations=sample.truth.relations))
    counts = count_relations(samples[:10])["scene_graph/geometric"]
    *_, (_, asked, right, *_) = counts.rows()
    assert right / asked < 0.2
