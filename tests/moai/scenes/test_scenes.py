"""Scenes as a stream: determinism, splits, workers, truth that agrees with itself."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from moai.scenes.asset_loading import sprite_boxes
from moai.scenes.layout import sample_layout
from moai.scenes.scenes import SPLITS, Scenes, scene_seed
from moai.scenes.signs import sign_words, split_of_word
from moai.scenes.truth import pixel_box
from moai.scenes.vocabulary import (
    GROUPS,
    OBJECT_CLASSES,
    OUTSIDE_NAMES,
    PANOPTIC_NAMES,
    PREDICATES,
    STUFF_NAMES,
    plural,
)
from verbalizers.core.scene import verbalize_scene

_MANY = 60


@pytest.fixture(scope="module")
def samples():
    scenes = Scenes(image_size=128)
    return [scenes[index] for index in range(_MANY)]


_DIGEST = """
import hashlib
from moai.scenes.scenes import Scenes

def digest(start, stop):
    sha = hashlib.sha256()
    for index in range(start, stop):
        sample = Scenes(image_size=64)[index]
        sha.update(sample.image.tobytes())
        sha.update(repr((sample.truth.to_dict(), sample.questions)).encode())
    return sha.hexdigest()
"""


def test_scenes_are_bit_equal_when_made_in_another_process():
    here: dict = {}
    exec(_DIGEST, here)  # noqa: S102 - the same lines run here and in the other process
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}  # nothing may depend on the order of sets
    command = [sys.executable, "-c", _DIGEST + "print(digest(0, 8))"]
    there = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()
    assert here["digest"](0, 8) == there != here["digest"](8, 16)


def test_scene_is_the_same_when_reached_by_index_or_by_iteration():
    scenes = Scenes(image_size=64, start=5, length=3)
    iterated = list(scenes)
    assert [sample.index for sample in iterated] == [5, 6, 7]
    for sample in iterated:
        again = scenes[sample.index]
        assert again.truth == sample.truth
        assert again.questions == sample.questions
        assert np.array_equal(again.image, sample.image)


def test_layout_does_not_change_when_the_image_size_changes():
    assert Scenes(image_size=64)[3].layout == Scenes(image_size=200)[3].layout


def test_scene_seeds_never_meet_when_splits_and_streams_differ():
    seeds = [scene_seed(seed, split, k) for seed in (0, 1) for split in SPLITS for k in range(500)]
    assert len(set(seeds)) == len(seeds)
    first = {split: Scenes(split=split, image_size=64)[0].layout for split in SPLITS}
    assert first["train"] != first["validation"] != first["test"] != first["train"]


def test_scenes_survive_pickling_when_sent_to_a_worker():
    scenes = Scenes(split="validation", image_size=48, num_objects=(2, 3))
    assert pickle.loads(pickle.dumps(scenes))[7].truth == scenes[7].truth


def test_scenes_refuse_settings_when_out_of_range():
    for wrong in (
        {"split": "dev"},
        {"num_objects": (-1, 2)},
        {"num_objects": (3, 2)},
        {"image_size": 8},
        {"start": -1},
    ):
        with pytest.raises(ValueError, match="must"):
            Scenes(**wrong)
    with pytest.raises(ValueError, match="kinds"):
        Scenes(kinds=("reading", "singing"))
    with pytest.raises(ValueError, match="sign_probability"):
        Scenes(sign_probability=1.5)
    for share in ("made_up_share", "forged_share", "image_noise"):
        with pytest.raises(ValueError, match=share):
            Scenes(**{share: -0.1})


def test_num_objects_bounds_every_scene_when_set():
    for low, high in ((1, 1), (2, 4)):
        scenes = Scenes(image_size=32, num_objects=(low, high), num_questions=0)
        counts = [sum(o.sign is None for o in scenes[k].layout.objects) for k in range(80)]
        assert max(counts) <= high
        assert min(counts) >= 1
        assert np.mean([count >= low for count in counts]) > 0.95


def test_a_quarter_of_the_names_lies_outside_when_compared_with_the_panoptic_vocabulary():
    names = len(OBJECT_CLASSES) + len(STUFF_NAMES)
    assert names == len(OUTSIDE_NAMES) + len(PANOPTIC_NAMES) == len({*OUTSIDE_NAMES, *PANOPTIC_NAMES})
    assert 140 <= names <= 165
    assert 0.22 <= len(OUTSIDE_NAMES) / names <= 0.28


def test_panoptic_names_are_coco_names_when_suffixes_are_dropped():
    vocabularies = pytest.importorskip("verbalizers.core.vocabularies")
    coco = {
        name.replace("-merged", "").replace("-other", "").replace("-stuff", "")
        for name in vocabularies.COCO_PANOPTIC_NAMES
    }
    assert set(PANOPTIC_NAMES) <= coco
    assert not set(OUTSIDE_NAMES) & coco


def test_every_object_has_a_sprite_when_it_is_not_a_sign():
    boxes = sprite_boxes()
    assert set(boxes) == set(OBJECT_CLASSES) - {"sign"}
    for name, entry in boxes.items():
        assert len(entry) == max(len(OBJECT_CLASSES[name].sprites), 1)
    assert all(GROUPS.values())


def test_truth_boxes_are_those_of_the_visible_pixels_when_objects_overlap(samples):
    for sample in samples:
        truth, entity_map = sample.truth, sample.entities.entity_map
        assert truth.image_size_hw == sample.image_size_hw == entity_map.shape
        first = len(sample.layout.stuff)
        found = {
            (name, *box)
            for part in (truth.segments, truth.detections)
            for name, box in zip(part.class_names, part.boxes_xyxy.tolist(), strict=True)
        }
        for k, placed in enumerate(sample.layout.objects):
            rows, columns = np.nonzero(entity_map == first + k + 1)
            assert rows.size, f"{placed.name} is invisible in scene {sample.index}"
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert (placed.name, *(float(v) for v in box)) in found
            x0, y0, x1, y1 = pixel_box(placed.box, 128)
            assert box[0] >= x0 - 1 and box[1] >= y0 - 1 and box[2] <= x1 + 1 and box[3] <= y1 + 1


def test_truth_reports_a_name_once_when_it_is_inside_or_outside_the_panoptic_vocabulary(samples):
    for sample in samples:
        assert set(sample.truth.segments.class_names) <= set(PANOPTIC_NAMES)
        assert set(sample.truth.detections.class_names) <= set(OUTSIDE_NAMES)
        assigned = np.isin(sample.truth.segments.panoptic_map, sample.truth.segments.segment_ids)
        shown = {o.name for o in sample.layout.objects} & set(OUTSIDE_NAMES)
        assert bool(shown) <= (not assigned.all())


def test_relations_follow_geometry_when_read_from_boxes(samples):
    seen = set()
    for sample in Scenes(image_size=96, start=1000, length=150, num_questions=0):
        graph = sample.truth.relations
        boxes = graph.object_boxes_xyxy / 96
        for s, predicate, o in zip(graph.subject_indices, graph.predicates, graph.object_indices, strict=True):
            assert predicate in PREDICATES
            assert s != o
            seen.add(predicate)
            a, b = boxes[s], boxes[o]
            overlap_x = min(a[2], b[2]) - max(a[0], b[0])
            if graph.object_names[o] in STUFF_NAMES:
                continue
            if predicate in ("over", "flying over"):
                assert a[3] <= b[1] + 0.05
            elif predicate == "beside":
                assert overlap_x <= 0.03
            elif predicate in ("on", "sitting on", "riding", "wearing", "in", "holding", "in front of"):
                assert overlap_x > -0.02
                assert min(a[3], b[3]) - max(a[1], b[1]) > -0.05
    assert len(seen) >= 14


def test_text_lines_lie_on_their_sign_when_a_sign_is_shown(samples):
    signs = 0
    for sample in samples:
        quads, scale = sample.truth.text_lines.quads, sample.image_size
        lines = [line for placed in sample.layout.objects if placed.sign for line in placed.sign.lines]
        assert sorted(lines) == sorted(sample.truth.text_lines.texts)
        boxes = [np.array(placed.box) * scale for placed in sample.layout.objects if placed.sign]
        for quad in quads:
            signs += 1
            x, y = quad[:, 0], quad[:, 1]
            assert any(
                b[0] - 1 <= x.min() and x.max() <= b[2] + 1 and b[1] - 1 <= y.min() and y.max() <= b[3] + 1
                for b in boxes
            )
            assert x[1] > x[0] and x[2] > x[3] and y[3] > y[0] and y[2] > y[1]  # clockwise from the top left
    assert signs > 20


def test_verbalization_names_everything_when_made_from_truth(samples):
    for sample in samples[:20]:
        words = verbalize_scene(sample.truth)
        for name in (*sample.truth.segments.class_names, *sample.truth.detections.class_names):
            assert name in words
        for text in sample.truth.text_lines.texts:
            assert text in words


def test_layouts_differ_when_only_the_seed_differs():
    from random import Random

    layouts = {repr(sample_layout(Random(seed))) for seed in range(50)}
    assert len(layouts) == 50


def test_plural_of_every_object_name_reads_well_when_formed():
    assert [
        plural(n) for n in ("person", "bus", "bench", "knife", "sheep", "scissors", "dog", "butterfly", "toothbrush")
    ] == [
        *("people", "buses", "benches", "knives", "sheep", "scissors", "dogs", "butterflies", "toothbrushes"),
    ]
    assert plural("donkey") == "donkeys"


def _words_on_signs(split, **options):
    scenes = Scenes(split, image_size=48, num_objects=(1, 1), sign_probability=1.0, forged_share=0.0, **options)
    texts = [text for index in range(80) for text in scenes[index].truth.text_lines.texts]
    return {word.lower() for text in texts for word in text.split()}


def test_signs_of_two_splits_never_share_a_word_when_they_are_of_the_list_or_made_up():
    lists = {split: set(sign_words(split)) for split in SPLITS}
    assert sum(map(len, lists.values())) == len(set().union(*lists.values())) > 30_000
    assert len(lists["test"]) > 3000
    for split in SPLITS:
        for share in (0.0, 1.0):
            words = _words_on_signs(split, made_up_share=share)
            assert len(words) > 80 and {split_of_word(word) for word in words} == {split}
        assert _words_on_signs(split, made_up_share=0.0) <= lists[split]
    assert any(word.isdigit() for word in _words_on_signs("test", made_up_share=1.0))


def test_forged_signs_speak_of_things_that_are_there_half_of_the_time_when_all_are_forged():
    scenes = Scenes("test", image_size=48, num_objects=(1, 6), sign_probability=1.0, forged_share=1.0)
    claims = []
    for index in range(150):
        layout = scenes[index].layout
        claims += [(o.sign.claim, {p.name for p in layout.objects}) for o in layout.objects if o.sign]
    assert len(claims) > 80
    assert 0.35 < sum(claim in names for claim, names in claims) / len(claims) < 0.65


def test_truth_lies_inside_the_frame_when_the_image_has_one():
    framed = 0
    for sample in Scenes("train", image_size=96, image_noise=1.0, length=60, sign_probability=1.0):
        noise = sample.image_noise
        x, y = noise.corner(96)
        size = noise.inner_size(96)
        shown = np.zeros((96, 96), bool)
        shown[y : y + size, x : x + size] = True
        assert sample.image.shape == (96, 96, 3)
        assert (sample.image[~shown] == noise.frame_grey).all()
        assert not sample.truth.segments.panoptic_map[~shown].any()
        boxes = np.concatenate([sample.truth.segments.boxes_xyxy, sample.truth.detections.boxes_xyxy])
        corner = np.array([x, y])
        assert (boxes[:, :2] >= corner).all() and (boxes[:, 2:] <= corner + size).all()
        quads = sample.truth.text_lines.quads
        assert (quads >= corner - 1).all() and (quads <= corner + size + 1).all()
        framed += size < 96
        if noise.is_grey:
            assert (np.ptp(sample.image, axis=2) == 0).all()
    assert 10 < framed < 50


def test_only_named_things_in_one_wording_when_asked_for() -> None:
    names = ("car", "dog", "umbrella", "chair")
    scenes = Scenes("test", image_size=64, num_objects=(2, 4), kinds=("existence", "colour"), length=60, names=names,
                    sign_probability=0.0, has_one_wording=True)  # fmt: skip
    samples = list(scenes)
    assert {placed.name for sample in samples for placed in sample.layout.objects} == set(names)
    questions = [asked for sample in samples for asked in sample.questions]
    assert {asked.asked for asked in questions} <= set(names)
    said = {asked.question.replace(asked.asked, "NAME") for asked in questions if asked.form == "existence"}
    assert said <= {"Is there a NAME in the picture?", "Is there an NAME in the picture?"}
    assert all(asked.is_trained_wording for asked in questions)
    with pytest.raises(ValueError, match="zebras"):
        Scenes(names=("car", "zebras"))
