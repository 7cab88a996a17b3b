"""No shortcut answers a kind of question; a kind that one answered would be found."""

from dataclasses import replace

import pytest

from moai.evaluation.shortcuts import EXEMPT_KINDS, Shortcuts, abstention_by_question, collect, score_shortcuts
from moai.scenes.scenes import QUESTION_KINDS


@pytest.fixture(scope="module")
def asked():
    return collect("train", 800), collect("test", 1000)


@pytest.fixture(scope="module")
def scores(asked):
    training, test = asked
    return score_shortcuts(Shortcuts(training), test, min_asked=60)


def test_no_reader_that_takes_a_shortcut_beats_chance_by_ten_points(scores):
    assert {score.kind for score in scores} == set(QUESTION_KINDS) - set(EXEMPT_KINDS)
    assert len({score.reader for score in scores}) > 18
    assert not [score for score in scores if score.is_shortcut]


def test_chance_leaves_room_for_those_who_read_when_it_is_counted(scores):
    most = {"existence": 0.6, "forged": 0.6, "comparison": 0.55, "counting": 0.56, "object_relation": 0.55}
    for score in scores:
        if score.reader == "commonest answer":
            assert score.chance < most.get(score.kind, 0.5), score


def test_questions_do_not_tell_whether_what_they_ask_about_is_absent(asked):
    assert abstention_by_question(*asked) < 0.6


@pytest.mark.parametrize(
    ("kind", "reader"),
    [("counting", "largest multiplicity"), ("recognition", "first name"), ("reading", "last word")]
    + [("localisation", "first box"), ("object_relation", "first relation"), ("comparison", "first of two")],
)
def test_a_shortcut_is_found_when_the_questions_allow_it(asked, kind, reader):
    training, test = asked
    readers = Shortcuts(training)
    read = readers.readers[reader]
    allowed = []
    for sample, question in test:
        guess = read(sample, question) if question.kind == kind else None
        if guess == question.answer or (guess is not None and len(allowed) % 3 == 0):
            allowed.append((sample, question))  # most questions are such as the reader answers
    assert len(allowed) > 20
    assert any(score.is_shortcut for score in score_shortcuts(readers, allowed) if score.reader == reader)


def test_a_question_reader_is_found_when_names_tell_the_answer(asked):
    training, test = asked

    def telling(pairs):
        rows = [(sample, question) for sample, question in pairs if question.kind == "existence"]
        return [(s, replace(q, answer="yes" if q.asked < "d" else "no")) for s, q in rows]

    scores = score_shortcuts(Shortcuts(telling(training)), telling(test))
    assert any(score.is_shortcut for score in scores if score.reader == "question alone")
