"""Noisy findings: what goes wrong, how often, and that nothing becomes invalid."""

from random import Random

import numpy as np
import pytest

from moai.scenes.noise import NoiseRates, add_noise
from moai.scenes.scenes import Scenes
from moai.scenes.vocabulary import OBJECT_CLASSES, PREDICATES, STUFF_NAMES
from verbalizers.core.scene import verbalize_scene

_NOTHING = dict.fromkeys(NoiseRates.__dataclass_fields__, 0.0)


@pytest.fixture(scope="module")
def truths():
    return [sample.truth for sample in Scenes(image_size=96, length=120, num_objects=(2, 6), num_questions=0)]


def _only(**rates):
    return NoiseRates(**{**_NOTHING, **rates})


def test_noise_is_the_same_when_the_seed_is_the_same(truths):
    for truth in truths[:10]:
        assert add_noise(truth, Random(3)) == add_noise(truth, 3)
        assert add_noise(truth, np.random.default_rng(3)) == add_noise(truth, np.random.default_rng(3))
    assert any(add_noise(truth, 3) != add_noise(truth, 4) for truth in truths[:10])


def test_noise_gives_the_truth_back_when_its_strength_is_zero(truths):
    assert add_noise(truths[0], 0, strength=0) == truths[0]
    with pytest.raises(ValueError, match="strength"):
        add_noise(truths[0], 0, strength=-1)


def test_noisy_scene_is_valid_when_noise_is_strong(truths):
    for k, truth in enumerate(truths):
        for strength in (1.0, 6.0):
            noisy = add_noise(truth, k, strength)
            assert noisy.image_size_hw == truth.image_size_hw
            assert noisy.segments.panoptic_map.shape == truth.segments.panoptic_map.shape
            boxes = noisy.detections.boxes_xyxy
            assert (boxes >= 0).all() and (boxes <= 96).all()
            assert set(noisy.relations.predicates) <= set(PREDICATES)
            assert set(noisy.segments.class_names) <= set(OBJECT_CLASSES) | set(STUFF_NAMES)
            verbalize_scene(noisy)


def test_truth_stays_untouched_when_noise_is_added(truths):
    before = [truth.to_dict() for truth in truths[:10]]
    for k, truth in enumerate(truths[:10]):
        add_noise(truth, k, 5.0)
    assert [truth.to_dict() for truth in truths[:10]] == before


def test_segments_are_missed_as_often_as_asked_when_only_missing(truths):
    total = sum(len(truth.segments) + len(truth.detections) for truth in truths)
    kept = 0
    for k, truth in enumerate(truths):
        noisy = add_noise(truth, k, rates=_only(miss=0.3))
        kept += len(noisy.segments) + len(noisy.detections)
        assert noisy.relations.predicates and set(noisy.relations.predicates) == set(truth.relations.predicates)
        assert sorted(noisy.text_lines.texts) == sorted(truth.text_lines.texts)
    assert 0.62 < kept / total < 0.78


def test_things_are_doubled_but_stuff_is_not_when_only_doubling(truths):
    doubled = 0
    for k, truth in enumerate(truths):
        noisy = add_noise(truth, k, rates=_only(double=0.5))
        doubled += len(noisy.detections) - len(truth.detections)
        names = [name for name in noisy.segments.class_names if name in STUFF_NAMES]
        assert sorted(names) == sorted(name for name in truth.segments.class_names if name in STUFF_NAMES)
        doubled += len(noisy.segments) - len(truth.segments)
    assert doubled > 60


def test_boxes_move_by_at_most_the_largest_shift_when_only_shifting(truths):
    moved = 0
    for k, truth in enumerate(truths):
        noisy = add_noise(truth, k, rates=_only(shift=0.9, max_shift=0.2))
        assert sorted(noisy.detections.class_names) == sorted(truth.detections.class_names)
        for name in set(truth.detections.class_names):
            if truth.detections.class_names.count(name) > 1:
                continue
            old = truth.detections.boxes_xyxy[truth.detections.class_names.index(name)]
            new = noisy.detections.boxes_xyxy[noisy.detections.class_names.index(name)]
            sides = np.tile(old[2:] - old[:2], 2)
            assert (np.abs(new - old) <= 0.31 * sides + 1e-3).all()
            moved += not np.array_equal(old, new)
    assert moved > 30


def test_letters_are_misread_but_mostly_right_when_strength_is_one(truths):
    letters = wrong = 0
    for k, truth in enumerate(truths):
        noisy = add_noise(truth, k, rates=_only(misread_letter=0.1))
        for old, new in zip(truth.text_lines.texts, noisy.text_lines.texts, strict=True):
            letters += len(old)
            wrong += old != new
            assert new
    assert 10 < wrong < 0.6 * letters


def test_predicates_change_to_lookalikes_when_only_predicates_change(truths):
    changed = sum(
        a != b
        for k, truth in enumerate(truths)
        for a, b in zip(
            sorted(truth.relations.predicates),
            sorted(add_noise(truth, k, rates=_only(change_predicate=0.5)).relations.predicates),
            strict=True,
        )
    )
    assert changed > 40


def test_confidence_falls_when_noise_is_added(truths):
    noisy = [add_noise(truth, k) for k, truth in enumerate(truths)]
    assert 0.7 < np.concatenate([scene.segments.confidence for scene in noisy]).mean() < 0.95
    assert min(scene.relations.confidence.min(initial=1) for scene in noisy) >= 0.8
