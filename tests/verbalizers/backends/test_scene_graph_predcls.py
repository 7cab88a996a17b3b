"""Relations from the names and places of found objects."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moai.scenes.scenes import Scenes
from verbalizers import Detections, Scene, build_verbalizer, parse_scene
from verbalizers.backends.scene_graph_predcls import _choose_predicates
from verbalizers.core.named_objects import name_objects
from verbalizers.predcls.measures_predcls import NUM_MEASURES, measure_pairs

CHECKPOINT = str(Path(__file__).resolve().parents[3] / "checkpoints" / "verbalizers" / "predcls-nano")


@pytest.fixture(scope="module")
def classifier():
    return build_verbalizer("scene_graph", "predcls", checkpoint=CHECKPOINT)


def triplets(relations):
    names = relations.object_names
    rows = zip(relations.subject_indices, relations.predicates, relations.object_indices, strict=True)
    return [(names[s], predicate, names[o]) for s, predicate, o in rows]


def boxes(*things, size_hw=(100, 100)):
    return Detections([box for _, *box in things], tuple(t[0] for t in things), np.full(len(things), 0.9), size_hw)


@pytest.mark.parametrize("kind", ["segmentation", "detection"])
def test_relations_of_scenes_are_found_when_their_objects_are(classifier, kind):
    asked = right = told = 0
    for sample in Scenes("validation", seed=11, image_size=224, num_objects=(3, 8), length=40):
        truth = sample.truth
        objects = name_objects(truth, 0.0, 1.0, "test")
        scene = replace(truth, relations=None)
        if kind == "detection":  # all of them as boxes
            found = Detections(
                objects.boxes_xyxy, objects.names, np.ones(len(objects.names), np.float32), truth.image_size_hw
            )
            scene = replace(scene, segments=None, detections=found)
        (relations,) = classifier.predict_with([sample.image], [scene])
        assert (np.diff(relations.confidence) <= 0).all() and (relations.confidence >= 0.5).all()
        true = triplets(truth.relations)
        found = triplets(relations)
        asked, told = asked + len(true), told + len(found)
        for triplet in found:
            if triplet in true:
                true.remove(triplet)
                right += 1
    assert right / asked > 0.8 and right / told > (0.8 if kind == "segmentation" else 0.7)


def test_nothing_is_related_when_names_are_unknown_or_alone(classifier):
    for detections in (
        boxes(("sofa bed", 10, 10, 50, 50), ("jukebox", 20, 40, 60, 90)),
        boxes(("dog", 10, 10, 50, 50)),
        boxes(),
    ):
        (relations,) = classifier.predict_with([None], [Scene((100, 100), detections=detections)])
        assert len(relations) == 0 and relations.object_names == ()


def test_unknown_names_change_nothing_when_others_are_related(classifier):
    table = (("dining table", 10, 50, 90, 95), ("cup", 40, 30, 52, 54))
    both = [boxes(*table), boxes(("jukebox", 0, 0, 30, 30), *table)]
    first, second = (classifier.predict_with([None], [Scene((100, 100), detections=found)])[0] for found in both)
    assert triplets(first) == triplets(second) == [("cup", "on", "dining table")]
    assert np.array_equal(first.object_boxes_xyxy, second.object_boxes_xyxy)


def test_symmetric_predicate_is_told_once_with_both_directions_probability():
    there = np.array([[[0.9, 0.0], [0.3, 0.2]], [[0.4, 0.1], [0.9, 0.0]]], np.float32)
    scores, chosen = _choose_predicates(there, np.array([True, False]))
    assert np.allclose(scores, [[-1, 0.2], [0.7, -1]]) and chosen[1, 0] == 0 and chosen[0, 1] == 1
    plain, _ = _choose_predicates(there, np.array([False, False]))
    assert np.allclose(plain, [[-1, 0.3], [0.4, -1]])
    tied, _ = _choose_predicates(np.full((2, 2, 1), 0.5, np.float32), np.array([True]))
    assert sorted(tied[~np.eye(2, dtype=bool)]) == [0, 1]
    for number in (0, 1):
        alone, _ = _choose_predicates(np.ones((number, number, 2), np.float32), np.array([True, False]))
        assert alone.shape == (number, number) and (alone == -1).all()


def test_scene_is_refused_when_nobody_found_objects(classifier):
    image = np.zeros((40, 40, 3), np.uint8)
    with pytest.raises(ValueError, match="scene_graph/predcls expected segments or detections"):
        classifier.predict([image])
    (scene,) = parse_scene([image], [classifier])
    assert "expected segments or detections" in scene.failures["scene_graph"]


def test_fewer_relations_are_told_when_settings_ask_for_fewer(classifier):
    sample = Scenes("validation", seed=11, image_size=224, num_objects=(6, 8), length=1)[0]
    scene = replace(sample.truth, relations=None)
    (every,) = classifier.predict_with([sample.image], [scene])
    few = build_verbalizer("scene_graph", "predcls", checkpoint=CHECKPOINT, max_relations=2)
    (two,) = few.predict_with([sample.image], [scene])
    assert triplets(two) == triplets(every)[:2] and len(every) > 2
    assert few.fingerprint() != classifier.fingerprint()


def test_measures_are_of_the_same_kind_when_the_image_is_larger():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 60, (5, 2))
    found = np.concatenate([corners, corners + rng.uniform(12, 40, (5, 2))], axis=1).astype(np.float32).clip(0, 100)
    object_map = np.full((100, 100), -1)
    for number, (x0, y0, x1, y1) in enumerate(found.astype(int)):
        object_map[y0:y1, x0:x1] = number
    small, large = measure_pairs(found, object_map), measure_pairs(4 * found, np.kron(object_map, np.ones((4, 4), int)))
    assert small.shape == (5, 5, NUM_MEASURES) and np.isfinite(small).all()
    assert np.abs(small - large).max() < 0.3 and np.abs(small - large).mean() < 0.01
    assert np.allclose(small[..., :5], small.transpose(1, 0, 2)[..., 5:10])  # subject's and object's own
    assert measure_pairs(np.zeros((0, 4), np.float32), object_map * 0 - 1).shape == (0, 0, NUM_MEASURES)
