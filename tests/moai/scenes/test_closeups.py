"""Parts of scenes: what is shown is the truth, what is cut off is absent, and few things are asked about too."""

import re
from random import Random

import numpy as np
import pytest

from moai.scenes.closeups import Closeup, _sample_shade, sample_closeup
from moai.scenes.questions import sorts_of
from moai.scenes.rendering import render_scene
from moai.scenes.scenes import Scenes
from moai.scenes.vocabulary import COLOURS, OBJECT_CLASSES, PAINTS, STUFF_NAMES, indefinite
from verbalizers.core.scene import verbalize_scene

SIZE = 96


@pytest.fixture(scope="module")
def samples():
    return list(Scenes("train", seed=6, image_size=SIZE, closeup_share=1.0, num_questions=12, length=150))


def names_of(sample) -> list[str]:
    return [*sample.truth.segments.class_names, *sample.truth.detections.class_names]


def things_of_sort(sample, sort: str) -> list[str]:
    things = {name for name in names_of(sample) if name in OBJECT_CLASSES}
    return [name for name in things if sort in sorts_of(name)]


def largest_name(sample) -> str:
    sized = [
        ((x1 - x0) * (y1 - y0), name)
        for part in (sample.truth.segments, sample.truth.detections)
        for (x0, y0, x1, y1), name in zip(part.boxes_xyxy.tolist(), part.class_names, strict=True)
        if name in OBJECT_CLASSES
    ]
    return max(sized)[1]


def test_image_and_truth_are_a_part_of_the_scene_when_it_is_seen_from_nearer(samples) -> None:
    close = [sample for sample in samples if sample.closeup is not None and sample.image_noise is None]
    assert len(close) > 100
    for sample in close[:25]:
        whole = sample.closeup.inner_size(SIZE)
        x, y = (-at for at in sample.closeup.corner(SIZE))
        assert whole > SIZE and 0 <= x <= whole - SIZE and 0 <= y <= whole - SIZE
        scene = render_scene(sample.layout, whole)
        assert np.array_equal(sample.image, scene[y : y + SIZE, x : x + SIZE])
    for sample in close:
        for part in (sample.truth.segments, sample.truth.detections):
            assert (part.boxes_xyxy >= 0).all() and (part.boxes_xyxy <= SIZE).all()
        shown = {placed.name for placed in sample.layout.objects if sample.closeup.shows(placed)}
        stuff = {region.name for region in sample.layout.stuff}
        assert set(names_of(sample)) - stuff <= shown
        assert not len(sample.truth.text_lines.texts)


def test_one_thing_is_large_and_none_is_in_doubt_when_a_part_is_drawn(samples) -> None:
    largest = []
    for sample in samples:
        if sample.closeup is None:
            continue
        shares = [sample.closeup.visible_share(placed.box) for placed in sample.layout.objects]
        assert all(share == 0 or share >= 0.6 for share in shares)
        sides = [
            max(placed.box[2] - placed.box[0], placed.box[3] - placed.box[1]) / sample.closeup.side
            for placed, share in zip(sample.layout.objects, shares, strict=True)
            if share
        ]
        largest.append(max(sides))
    assert np.median(largest) > 0.5


def test_questions_speak_of_what_is_shown_when_it_is_a_part(samples) -> None:
    asked = [(sample, question) for sample in samples for question in sample.questions]
    kinds = {question.kind for _, question in asked}
    assert {"existence", "counting", "recognition", "localisation", "colour", "absence"} <= kinds
    for sample, question in asked:
        called = [question.asked] if not question.is_sort else things_of_sort(sample, question.asked)
        if question.kind == "existence":
            assert (question.answer == "yes") == any(name in names_of(sample) for name in called)
        if question.kind == "counting":
            assert int(question.answer) == sum(names_of(sample).count(name) for name in called)
        if question.kind == "colour":
            painted = [p for p in sample.layout.objects if p.name == question.asked and p.colour]
            shown = {p.colour for p in painted if sample.closeup is None or sample.closeup.shows(p)}
            grounds = {region.colour for region in sample.layout.stuff if region.name == question.asked}
            assert question.answer in shown | grounds and question.asked in names_of(sample)


def test_single_things_are_asked_about_when_scenes_are_seen_from_nearer() -> None:
    options = {"image_size": 48, "num_objects": (1, 1), "sign_probability": 0.0, "num_questions": 12, "length": 40}
    kinds = ("counting", "recognition", "localisation")
    for share in (0.0, 1.0):
        asked = [q for s in Scenes("train", closeup_share=share, kinds=kinds, **options) for q in s.questions]
        assert {question.kind for question in asked} == (set(kinds) if share else set())
    assert {"recognition_largest", "recognition_sort"} <= {question.form for question in asked}


def test_scenes_stay_what_they_were_when_others_are_seen_from_nearer() -> None:
    plain, mixed = (Scenes("test", seed=2, image_size=48, closeup_share=share, length=40) for share in (0.0, 0.4))
    same = [
        a.questions == b.questions and np.array_equal(a.entities.entity_map, b.entities.entity_map)
        for a, b in zip(plain, mixed, strict=True)
    ]
    assert 15 < sum(same) < 35


def test_no_part_is_drawn_when_there_is_nothing_in_the_scene() -> None:
    empty = next(s for s in Scenes("train", image_size=48, num_objects=(0, 0), sign_probability=0.0, length=5))
    assert sample_closeup(Random(0), empty.layout) is None
    with pytest.raises(ValueError, match="closeup_share"):
        Scenes(closeup_share=1.5)


def test_corner_stays_inside_the_scene_when_it_is_rounded() -> None:
    for k in range(200):
        rng = Random(k)
        side = rng.uniform(0.2, 0.9)
        closeup = Closeup(1 - side, rng.uniform(0, 1 - side), side)
        whole = closeup.inner_size(SIZE)
        assert all(0 <= -at <= whole - SIZE for at in closeup.corner(SIZE))


def test_the_only_thing_of_its_sort_is_the_answer_when_a_sort_is_asked_for(samples) -> None:
    asked = [(sample, question) for sample in samples for question in sample.questions if question.is_sort]
    assert {"existence", "counting", "recognition", "absence"} == {question.kind for _, question in asked}
    assert {"yes", "no"} < {question.answer for _, question in asked}
    for sample, question in asked:
        if question.kind == "absence":
            assert question.answer == f"There is no {question.asked}."
            assert not things_of_sort(sample, question.asked)
        elif question.kind != "recognition":
            assert question.asked != "animal" or not {"teddy bear", "mouse"} & set(names_of(sample))
        elif question.form.startswith("recognition_sort"):
            said = [sort for sort in sorts_of(question.answer) if sort in question.question.lower()]
            called = {name for sort in said for name in things_of_sort(sample, sort)}
            assert called <= {question.answer} or largest_name(sample) == question.answer, question


def test_things_have_more_colours_when_scenes_are_seen_from_nearer(samples) -> None:
    """People and signs have their own, and whole scenes the colours that they had."""
    near = {p.colour for sample in samples if sample.closeup for p in sample.layout.objects}
    grounds = {region.colour for sample in samples if sample.closeup for region in sample.layout.stuff}
    assert near == grounds == {"", *PAINTS}
    assert not any(p.colour for sample in samples for p in sample.layout.objects if p.name in ("person", "sign"))
    whole = Scenes("train", seed=6, image_size=48, length=60)
    assert {p.colour for sample in whole for p in sample.layout.objects} <= {"", *COLOURS}
    assert not any(region.colour for sample in whole for region in sample.layout.stuff)
    asked = [(sample, q) for sample in samples for q in sample.questions if q.kind == "colour"]
    assert len(asked) > 10
    for sample, question in asked:
        parts = (*sample.layout.objects, *sample.layout.stuff)
        assert question.answer in {part.colour for part in parts if part.name == question.asked}
    assert any(question.asked in STUFF_NAMES for _, question in asked)


def test_one_of_two_answers_is_right_when_a_question_names_both() -> None:
    near = Scenes("train", seed=8, image_size=SIZE, closeup_share=1.0, num_questions=14, length=200)
    asked = [(sample, question) for sample in near for question in sample.questions]
    places = [(sample, question) for sample, question in asked if question.form == "localisation_either"]
    things = [(sample, question) for sample, question in asked if question.form == "recognition_either"]
    colours = [question for _, question in asked if question.form == "colour_either"]
    assert min(map(len, (places, things, colours))) > 20
    for sample, question in places:
        boxes = [
            (x0, y0, x1, y1)
            for part in (sample.truth.segments, sample.truth.detections)
            for (x0, y0, x1, y1), name in zip(part.boxes_xyxy.tolist(), part.class_names, strict=True)
            if name == question.asked
        ]
        ((x0, y0, x1, y1),) = boxes
        assert question.answer in ("left" if x0 + x1 < SIZE else "right", "top" if y0 + y1 < SIZE else "bottom")
    assert {question.answer for _, question in places} == {"left", "right", "top", "bottom"}
    for sample, question in things:
        words = question.question.lower()
        others = [name for name in OBJECT_CLASSES if re.search(rf"\b{indefinite(name)}\b", words)]
        assert question.answer in names_of(sample) and set(others) & set(names_of(sample)) <= {question.answer}
    said = [sum(re.search(rf"\b{colour}\b", q.question.lower()) is not None for colour in PAINTS) for q in colours]
    assert sum(number == 2 for number in said) > 0.8 * len(said)  # but for slips of the keyboard
    whole = Scenes("train", seed=8, image_size=48, num_questions=14, length=60)
    assert not any(question.form.endswith("_either") for sample in whole for question in sample.questions)


def test_colours_are_shades_that_go_by_their_names_when_scenes_are_seen_from_nearer(samples) -> None:
    """Of each colour many, none far from what else has its name, and none near to what another colour's name fits."""
    shades: dict[str, set[tuple[int, int, int]]] = {}
    for sample in samples:
        for region in filter(lambda region: region.colour, sample.layout.stuff):
            shades.setdefault(region.colour, set()).add(region.shade)
        for placed in sample.layout.objects:
            assert (placed.shade is None) == (sample.closeup is None or not placed.colour)
            if placed.shade is not None:
                shades.setdefault(placed.colour, set()).add(placed.shade)
    assert set(shades) == set(PAINTS) and min(map(len, shades.values())) > 10
    rng = Random(0)
    drawn = {colour: np.array([_sample_shade(rng, colour) for _ in range(1000)], float) for colour in PAINTS}
    for colour, its in shades.items():
        others = np.concatenate([them for other, them in drawn.items() if other != colour])
        for shade in [*its, *drawn[colour][:200]]:
            nearest = np.sort(np.linalg.norm(drawn[colour] - shade, axis=1))[1]
            assert nearest < 45 and np.linalg.norm(others - shade, axis=1).min() > 12, (colour, shade)
    whole = Scenes("train", seed=6, image_size=48, length=40)
    assert all(placed.shade is None for sample in whole for placed in sample.layout.objects)


def test_no_answer_tells_a_sort_when_it_is_asked_whether_one_is_there() -> None:
    """A sort is there as often as not: what is asked for is here or in the foil, never in both."""
    kinds = ("existence",) * 8
    near = Scenes("train", seed=9, image_size=32, num_questions=8, kinds=kinds, closeup_share=1.0, length=1500)
    answers = [(q.asked, q.answer) for sample in near for q in sample.questions if q.is_sort and not q.earlier]
    for sort in ("animal", "bird", "food", "insect", "instrument", "person", "plant", "vehicle"):
        yes, no = (answers.count((sort, answer)) for answer in ("yes", "no"))
        assert yes + no > 15 and 0.25 < yes / (yes + no) < 0.75, (sort, yes, no)


def test_sorts_are_asked_for_by_name_when_scenes_are_whole() -> None:
    """Whole scenes, which the benchmark has, ask for nothing that the generator has no name for."""
    whole = Scenes("train", seed=6, image_size=48, num_questions=12, length=80)
    assert not any(question.is_sort for sample in whole for question in sample.questions)


def test_everything_is_absent_when_the_image_is_blank() -> None:
    blank = list(Scenes("train", seed=6, image_size=48, blank_share=1.0, num_questions=14, length=60))
    asked = [question for sample in blank for question in sample.questions]
    assert all(verbalize_scene(sample.truth) == "" and names_of(sample) == [] for sample in blank)
    right = {"existence": "no", "counting": "0", "description": "There is nothing.", "absence": "There "}
    assert set(right) == {question.kind for question in asked}
    assert all(question.answer.startswith(right[question.kind]) for question in asked)
    assert any(question.kind == "existence" and question.asked == "sign" for question in asked)
    spans = [np.ptp(sample.image.reshape(-1, 3), axis=0).max() for sample in blank]
    # Of one value, of one colour under uneven light, or nothing that has a name.
    assert spans.count(0) >= 8 and sum(0 < span < 80 for span in spans) >= 8 and sum(span > 80 for span in spans) >= 20
    assert len({tuple(sample.image[0, 0]) for sample in blank}) > 40


def test_scenes_stay_what_they_were_when_others_are_blank() -> None:
    plain, mixed = (Scenes("test", seed=2, image_size=48, blank_share=share, length=40) for share in (0.0, 0.4))
    pairs = list(zip(plain, mixed, strict=True))
    assert all(a.questions == b.questions for a, b in pairs if b.layout.stuff)
    assert 5 < sum(not b.layout.stuff for _, b in pairs) < 25
    with pytest.raises(ValueError, match="blank_share"):
        Scenes(blank_share=-0.1)
