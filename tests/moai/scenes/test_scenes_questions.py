"""Questions about scenes: right, unambiguous, balanced."""

import re
from collections import Counter, defaultdict
from random import Random

import numpy as np
import pytest

from moai.scenes.questions import QUESTION_KINDS, REGIONS, ask_questions, format_box, region_of
from moai.scenes.scenes import Scenes
from moai.scenes.vocabulary import OBJECT_CLASSES, PREDICATES, STUFF_NAMES, indefinite, plural
from verbalizers.core.scene import verbalize_scene
from verbalizers.core.structures import Detections, Relations, Scene, Segments, TextLines


@pytest.fixture(scope="module")
def samples():
    return list(Scenes(image_size=96, length=400, num_objects=(1, 6)))


def _by_kind(samples):
    kinds = defaultdict(list)
    for sample in samples:
        for question in sample.questions:
            kinds[question.kind].append((sample, question))
    return kinds


def _names(truth):
    return Counter((*truth.segments.class_names, *truth.detections.class_names))


def _asked_name(question, candidates, form):
    """The longest candidate whose written form is in the question: "teddy bear" before "bear"."""
    hits = [name for name in candidates if re.search(rf"\b{re.escape(form(name))}\b", question)]
    return max(hits, key=lambda name: len(form(name)))


def test_questions_cover_all_kinds_when_many_scenes_are_asked(samples):
    kinds = _by_kind(samples)
    assert set(kinds) == set(QUESTION_KINDS)
    assert all(len(asked) > 150 for asked in kinds.values())
    assert all(len(sample.questions) == 7 for sample in samples)
    assert all(len({q.question for q in sample.questions}) == 7 for sample in samples)


def test_existence_answers_are_right_and_balanced_when_compared_with_the_truth(samples):
    asked = _by_kind(samples)["existence"]
    for sample, question in asked:
        name = _asked_name(question.question, (*OBJECT_CLASSES, *STUFF_NAMES), indefinite)
        assert question.answer == ("yes" if name in _names(sample.truth) else "no"), (sample.index, question)
    share = np.mean([question.answer == "yes" for _, question in asked])
    assert 0.42 < share < 0.58


def test_existence_negatives_are_plausible_when_asked(samples):
    near = 0
    asked = [(s, q) for s, q in _by_kind(samples)["existence"] if q.answer == "no"]
    for sample, question in asked:
        name = _asked_name(question.question, (*OBJECT_CLASSES, *STUFF_NAMES), indefinite)
        groups = {OBJECT_CLASSES[n].group for n in _names(sample.truth) if n in OBJECT_CLASSES}
        near += name in STUFF_NAMES or OBJECT_CLASSES[name].group in groups
    assert near / len(asked) > 0.4


def test_counting_answers_are_right_when_compared_with_the_truth(samples):
    asked = _by_kind(samples)["counting"]
    for sample, question in asked:
        name = _asked_name(question.question, OBJECT_CLASSES, plural)
        assert int(question.answer) == _names(sample.truth)[name], (sample.index, question)
    answers = Counter(question.answer for _, question in asked)
    assert set(answers) == {"0", "1", "2", "3", "4", "5"}
    assert max(answers.values()) / len(asked) < 0.5


def test_localisation_answers_are_right_when_compared_with_the_boxes(samples):
    answers = Counter()
    for sample, question in _by_kind(samples)["localisation"]:
        names = _names(sample.truth)
        name = _asked_name(question.question, names, lambda n: n)
        assert names[name] == 1
        part = sample.truth.detections if name in sample.truth.detections.class_names else sample.truth.segments
        box = part.boxes_xyxy[part.class_names.index(name)] / 96
        if question.answer.startswith("["):
            assert question.answer == format_box(box.tolist())
            assert f"{question.answer} {name}" in verbalize_scene(sample.truth)
        else:
            assert question.answer in REGIONS
            assert question.answer == region_of((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        answers[question.answer[:1] == "["] += 1
    assert answers[True] > 30
    assert answers[False] > 100


def test_recognition_answers_are_unambiguous_when_asked_by_region(samples):
    for sample, question in _by_kind(samples)["recognition"]:
        names = _names(sample.truth)
        assert question.answer in names
        assert question.answer not in STUFF_NAMES
        if "[" in question.question:
            box = re.search(r"\[.*\]", question.question).group()
            assert f"{box} {question.answer}" in verbalize_scene(sample.truth)
            continue
        region = next(r for r in sorted(REGIONS, key=len, reverse=True) if r in question.question)
        inside = []
        for part in (sample.truth.segments, sample.truth.detections):
            for name, box in zip(part.class_names, part.boxes_xyxy / 96, strict=True):
                if name not in STUFF_NAMES and region_of((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) == region:
                    inside.append(name)
        assert inside == [question.answer]


def test_relation_answers_stand_in_the_truth_when_asked(samples):
    forms = Counter()
    for sample, question in _by_kind(samples)["relation"]:
        graph = sample.truth.relations
        said = [
            (graph.object_names[s], p, graph.object_names[o])
            for s, p, o in zip(graph.subject_indices, graph.predicates, graph.object_indices, strict=True)
        ]
        if question.answer in PREDICATES:
            right = {p for s, p, o in said if s in question.question and o in question.question}
            assert question.answer in right
            forms["predicate"] += 1
            continue
        text = question.question
        as_object = {o for s, p, o in said if re.fullmatch(rf"What (is|are) the {s} {p}\?", text)}
        as_subject = {s for s, p, o in said if text == f"What is {p} the {o}?"}
        assert as_object | as_subject == {question.answer}
        forms["object" if as_object else "subject"] += 1
    assert min(forms.values()) > 20 and len(forms) == 3


def test_reading_answers_are_the_words_on_the_sign_when_asked(samples):
    positions = Counter()
    for sample, question in _by_kind(samples)["reading"]:
        signs = sorted((o for o in sample.layout.objects if o.sign), key=lambda o: o.sign.quads[0][0][1])
        words = [" ".join(o.sign.lines) for o in signs]
        index = 1 if "lower" in question.question else 0
        assert question.answer == words[index]
        assert (len(words) == 2) == ("upper" in question.question or "lower" in question.question)
        positions[index] += 1
    assert positions[1] > 5


def test_description_answers_tell_relations_and_words_when_asked(samples):
    kinds = Counter()
    for sample, question in _by_kind(samples)["description"]:
        is_verbalization = question.answer == verbalize_scene(sample.truth)
        kinds[is_verbalization] += 1
        assert ("box" in question.question) == is_verbalization
        for text in sample.truth.text_lines.texts:
            assert text in question.answer
    assert 0.35 < kinds[True] / sum(kinds.values()) < 0.65


def test_several_phrasings_are_used_when_a_kind_is_asked_often(samples):
    for kind, asked in _by_kind(samples).items():
        openings = {" ".join(question.question.split()[:3]) for _, question in asked}
        assert len(openings) >= 3, kind


def test_region_of_splits_the_picture_into_nine_when_given_points():
    assert [region_of(x, y) for y in (0.1, 0.5, 0.9) for x in (0.1, 0.5, 0.9)] == list(REGIONS)
    assert region_of(0.34, 0.5, margin=0.03) is None
    assert region_of(1.0, 1.0) == "bottom right"


def test_questions_stay_silent_when_nothing_was_found():
    empty = Scene(
        image_size_hw=(20, 20),
        segments=Segments(np.zeros((20, 20), np.int32), (), (), np.zeros(0)),
        detections=Detections(np.zeros((0, 4)), (), np.zeros(0), (20, 20)),
        relations=Relations((), np.zeros(0, int), np.zeros(0, int), (), np.zeros(0)),
        text_lines=TextLines(np.zeros((0, 4, 2)), (), np.zeros(0)),
    )
    asked = ask_questions(empty, Random(0), num_questions=20)
    assert {question.kind for question in asked} <= {"existence", "counting"}
    assert {question.answer for question in asked} <= {"no", "0"}


def test_ask_questions_refuses_kinds_when_unknown(samples):
    with pytest.raises(ValueError, match="kinds"):
        ask_questions(samples[0].truth, Random(0), kinds=("rhyming",))
    only = ask_questions(samples[0].truth, Random(0), 3, ("existence",))
    assert [question.kind for question in only] == ["existence"] * 3
