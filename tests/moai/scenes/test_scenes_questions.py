"""Questions about scenes: right, unambiguous, about what is absent too, in many words."""

import re
from collections import Counter, defaultdict
from random import Random

import numpy as np
import pytest

from moai.evaluation.scene_answers import is_abstention
from moai.scenes.questions import CANNOT_TELL, QUESTION_KINDS, REGIONS, ask_questions, format_box, region_of
from moai.scenes.scenes import Scenes
from moai.scenes.vocabulary import COLOURS, OBJECT_CLASSES, STUFF_NAMES, SYNONYMS, plural
from verbalizers.core.scene import verbalize_scene


@pytest.fixture(scope="module")
def samples():
    return list(Scenes("test", image_size=96, length=500, num_questions=14))


@pytest.fixture(scope="module")
def by_kind(samples):
    kinds = defaultdict(list)
    for sample in samples:
        for question in sample.questions:
            kinds[question.kind].append((sample, question))
    return kinds


def _names(truth):
    return Counter((*truth.segments.class_names, *truth.detections.class_names))


def _boxes(truth, name):
    size = truth.image_size_hw[0]
    parts = (truth.segments, truth.detections)
    return [b / size for part in parts for n, b in zip(part.class_names, part.boxes_xyxy, strict=True) if n == name]


def _relations(truth):
    graph = truth.relations
    ends = zip(graph.subject_indices, graph.predicates, graph.object_indices, strict=True)
    return [(graph.object_names[s], p, graph.object_names[o]) for s, p, o in ends]


def test_questions_cover_all_kinds_when_many_scenes_are_asked(samples, by_kind):
    assert set(by_kind) == set(QUESTION_KINDS)
    assert all(len(asked) > 30 for asked in by_kind.values())
    assert min(len(sample.questions) for sample in samples) >= 1  # empty scenes are asked about too
    assert any(not sample.layout.objects for sample in samples)


@pytest.mark.parametrize("kind", ["existence", "forged"])
def test_existence_answers_are_right_and_balanced_when_compared_with_the_truth(by_kind, kind):
    for sample, question in by_kind[kind]:
        assert question.answer == ("yes" if question.asked in _names(sample.truth) else "no"), question
    share = np.mean([question.answer == "yes" for _, question in by_kind[kind]])
    assert 0.4 < share < 0.6


def test_forged_questions_are_about_what_a_sign_claims_when_asked(by_kind):
    for sample, question in by_kind["forged"]:
        (sign,) = [placed.sign for placed in sample.layout.objects if placed.sign]
        assert question.asked == sign.claim
        assert any(word in " ".join(sign.lines) for word in (question.asked, plural(question.asked)))


def test_counting_answers_are_every_number_with_others_beside_when_asked(by_kind):
    answers = Counter()
    for sample, question in by_kind["counting"]:
        counts = _names(sample.truth)
        assert int(question.answer) == counts[question.asked], question
        others = {c for n, c in counts.items() if n in OBJECT_CLASSES and n != "sign"} - {counts[question.asked]}
        assert others  # another name has another number
        answers[question.answer] += 1
    assert set(answers) == set("012345")
    assert max(answers.values()) / sum(answers.values()) < 0.35


def test_localisation_answers_are_right_when_compared_with_the_boxes(by_kind):
    kinds = Counter()
    for sample, question in by_kind["localisation"]:
        boxes = sorted(_boxes(sample.truth, question.asked), key=lambda b: b[0] + b[2])
        if question.form == "localisation_which":
            assert len(boxes) > 1
            sides = [side in question.question.casefold() for side in ("left", "right")]
            if not any(sides):
                continue  # a typo
            box = boxes[-sides[1]]
        else:
            (box,) = boxes
        if question.answer.startswith("["):
            assert question.answer == format_box(box.tolist())
            assert f"{question.answer} {question.asked}" in verbalize_scene(sample.truth)
        else:
            assert question.answer == region_of((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        kinds[question.form] += 1
    assert {"localisation", "localisation_box", "localisation_which", "localisation_again"} == set(kinds)


def test_recognition_answers_are_unambiguous_when_asked_by_region(by_kind):
    for sample, question in by_kind["recognition"]:
        assert question.answer in OBJECT_CLASSES
        if question.form == "recognition_box":
            box = re.search(r"\[.*\]", question.question).group()
            assert f"{box} {question.answer}" in verbalize_scene(sample.truth)
            continue
        text = question.question.casefold()
        said = ["in the center" if region == "center" else f"at the {region}" for region in REGIONS]
        if not any(where in text for where in said):
            continue  # a typo
        region = next(region for region, where in zip(REGIONS, said, strict=True) if where in text)
        inside = [
            name
            for name in _names(sample.truth)
            for b in _boxes(sample.truth, name)
            if name in OBJECT_CLASSES and region_of((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) == region
        ]
        assert inside == [question.answer]


def test_relation_answers_stand_in_the_truth_when_asked(by_kind):
    for kind, is_ground in (("ground_relation", True), ("object_relation", False)):
        forms = Counter()
        for sample, question in by_kind[kind]:
            pairs = [(s, o) if question.form == "relation_object" else (o, s) for s, _, o in _relations(sample.truth)]
            assert (question.asked, question.answer) in pairs
            ground = question.answer if question.form == "relation_object" else question.asked
            assert (ground in STUFF_NAMES) == is_ground
            assert len(set(question.options)) > 1  # the scene leaves it open
            forms[question.form] += 1
        assert len(forms) == 2 and min(forms.values()) > 5


def test_reading_answers_are_on_the_sign_when_asked(by_kind):
    forms = Counter()
    for sample, question in by_kind["reading"]:
        signs = sorted((o for o in sample.layout.objects if o.sign), key=lambda o: o.sign.quads[0][0][1])
        texts = [" ".join(o.sign.lines) for o in signs]
        text = question.question.casefold()
        forms[question.form] += 1
        if question.form == "reading_which":
            assert len(texts) == 2 and question.answer in texts
            for word, place in (("upper sign", 0), ("lower sign", 1)):
                assert word not in text or question.answer == texts[place]
            centres = [o.box[0] + o.box[2] for o in signs]
            for word, place in (("left sign", np.argmin(centres)), ("right sign", np.argmax(centres))):
                assert word not in text or question.answer == texts[place]
        elif question.form == "reading":
            assert [question.answer] == texts
        elif question.form == "reading_number":
            assert question.answer.isdigit() and question.answer in texts[0].split()
        else:
            assert question.answer in texts[0].split()
            for number, word in enumerate(("first", "second", "third")):
                assert f"{word} word" not in text or question.answer == texts[0].split()[number]
    assert set(forms) == {"reading", "reading_which", "reading_word", "reading_number"}


def test_only_pixels_tell_colours_when_asked(by_kind):
    answers = Counter()
    for sample, question in by_kind["colour"]:
        (placed,) = [p for p in sample.layout.objects if p.name == question.asked]
        assert question.answer == placed.colour
        assert question.answer not in verbalize_scene(sample.truth, ["segmentation", "detection", "scene_graph"])
        answers[question.answer] += 1
    assert set(answers) == set(COLOURS) and max(answers.values()) / sum(answers.values()) < 0.25
    grey = Scenes("train", image_size=64, image_noise=1.0, length=60, kinds=("colour",))
    assert all(not sample.questions for sample in grey if sample.image_noise.is_grey)


def test_comparison_answers_follow_from_boxes_when_asked(by_kind):
    seen = Counter()
    for sample, question in by_kind["comparison"]:
        first, second = (_boxes(sample.truth, name)[0] for name in question.options)
        text = question.question.casefold()
        area, centre = (lambda b: (b[2] - b[0]) * (b[3] - b[1])), (lambda b: b[0] + b[2])
        for more, is_first in (
            ("larger", area(first) > area(second)),
            ("smaller", area(first) < area(second)),
            ("further left", centre(first) < centre(second)),
            ("further right", centre(first) > centre(second)),
        ):
            if more in text:
                seen[more] += 1
                assert question.answer == question.options[not is_first]
    assert len(seen) == 4


def test_absent_things_are_said_to_be_absent_when_asked_about(by_kind):
    forms = Counter()
    for sample, question in by_kind["absence"]:
        assert question.asked not in _names(sample.truth)
        called = re.fullmatch(r"There (is|are) no (.+)\.", question.answer)[2]
        assert called in (question.asked, *SYNONYMS.get(question.asked, ()))
        forms[question.form] += 1
    assert {"localisation", "localisation_box", "relation_object", "reading", "colour"} <= set(forms)
    assert {question.answer for _, question in by_kind["outside"]} == {CANNOT_TELL}
    others = [q.answer for kind, asked in by_kind.items() if kind not in ("absence", "outside") for _, q in asked]
    assert not any(map(is_abstention, others))


def test_description_names_what_is_there_once_when_asked(by_kind):
    empty = 0
    for sample, question in by_kind["description"]:
        for name in _names(sample.truth):
            assert name in question.options
        assert all(text in question.answer for text in sample.truth.text_lines.texts)
        empty += question.answer.startswith("There is only")
    assert empty > 5


def test_second_turns_follow_their_first_when_asked(by_kind):
    asked = [question for kind in by_kind.values() for _, question in kind if question.earlier]
    assert 0.03 < len(asked) / sum(map(len, by_kind.values())) < 0.2
    again = [question for question in asked if question.form.endswith("_again")]
    assert {question.earlier[0][1] for question in again if question.kind == "absence"} == {"no"}
    assert {question.earlier[0][1] for question in again if question.kind != "absence"} == {"yes"}


def test_region_of_splits_the_image_into_nine_when_given_points():
    assert [region_of(x, y) for y in (0.1, 0.5, 0.9) for x in (0.1, 0.5, 0.9)] == list(REGIONS)
    assert region_of(0.34, 0.5, margin=0.03) is None
    assert region_of(1.0, 1.0) == "bottom right"


def test_ask_questions_refuses_kinds_when_unknown(samples):
    scene = samples[0]
    with pytest.raises(ValueError, match="kinds"):
        ask_questions(scene.truth, scene.layout, scene.layout, Random(0), kinds=("rhyming",))
