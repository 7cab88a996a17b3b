"""Metrics on answers whose scores are known: by the benchmarks' own code, or by hand."""

import pytest

from moai.evaluation.cider import CiderScorer
from moai.evaluation.metrics import build_metric, find_letter, say_yes_or_no
from moai.evaluation.questions import TestImage, TestQuestion
from moai.evaluation.vqa_words import normalize_answer


def ask(*answers: str, kind: str = "all", image: str = "a") -> TestQuestion:
    return TestQuestion("1", kind, "?", answers, TestImage(image, lambda: None))


def score(name: str, given: str, *answers: str) -> float:
    question = ask(*answers)
    return build_metric(name, [question]).score(question, given)


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("The Dog.", "dog"),
        ("two dogs", "2 dogs"),
        ("dont", "don't"),
        ("wouldnt've", "wouldn't've"),
        ("black/white", "black white"),
        ("yes, it is", "yes it is"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("3.", "3"),
        ("none", "0"),
    ],
)
def test_vqa_answers_are_compared_in_the_benchmarks_form_when_written_otherwise(given, normal):
    assert normalize_answer(given) == normal


def test_vqa_accuracy_leaves_one_of_ten_answers_out_when_three_agree():
    answers = ["cat"] * 3 + ["dog"] * 7
    assert score("vqa", "Cat.", *answers) == pytest.approx(0.9)  # the benchmark's own figure for 3 of 10
    assert score("vqa", "a dog", *answers) == 1
    assert score("vqa", "cat", "cat", *["dog"] * 9) == pytest.approx(0.3)
    assert score("vqa", "bird", *answers) == 0
    assert score("vqa", "the cat", "cat") == 1


def test_anls_counts_letters_and_drops_what_is_less_than_half_right_when_scored():
    assert score("anls", "STOPP", "stop") == pytest.approx(0.8)
    assert score("anls", "a", "stop", "a b") == 0
    assert score("anls", "Stop", "go", "stop") == 1


@pytest.mark.parametrize(
    ("given", "answer", "expected"),
    [("104", "100", 1), ("106", "100", 0), ("50%", "0.5", 1), ("1,020", "1000", 1), ("Red", "red", 1), ("0.1", "0", 0)]
    + [("nan", "3", 0), ("red", "3", 0)],
)
def test_numbers_may_differ_by_a_twentieth_when_relaxed(given, answer, expected):
    assert score("relaxed", given, answer) == expected


def test_yes_and_no_are_counted_as_pope_and_mme_do_when_described():
    pairs = [(ask("yes"), "Yes, there is."), (ask("no"), "yes"), (ask("no", image="b"), "There is no dog. Yes.")]
    pairs += [(ask("yes", image="b"), "no"), (ask("yes", image="c"), "a dog")]
    metric = build_metric("yes_no", [pair[0] for pair in pairs])
    assert [metric.score(*pair) for pair in pairs] == [1, 0, 1, 0, 0]
    row = metric.describe(pairs)
    assert row["precision"] == 0.5 and row["recall"] == pytest.approx(1 / 3) and row["f1"] == pytest.approx(0.4)
    assert row["yes_ratio"] == pytest.approx(2 / 5) and row["accuracy_plus"] == 0
    assert row["mme_score"] == pytest.approx(40)
    assert say_yes_or_no("It is not.") == "no" and say_yes_or_no("") == "other"


@pytest.mark.parametrize(
    ("text", "letter"),
    [("B", "B"), ("(b)", "B"), ("B. a cat", "B"), ("The answer is C.", "C"), ("a cat", None), ("", None)],
)
def test_letter_of_a_choice_is_found_when_words_stand_around_it(text, letter):
    assert find_letter(text) == letter


def test_boxes_score_their_overlap_when_one_is_said():
    assert score("box_iou", "[0, 0, 1, 0.5]", "[0, 0, 1, 1]") == pytest.approx(0.5)
    assert score("box_iou", "top left", "[0, 0, 1, 1]") == 0
    with pytest.raises(ValueError, match="expected \\[x0, y0, x1, y1\\]"):
        score("box_iou", "[0, 0, 1, 1]", "left")


def test_cider_is_that_of_the_released_evaluation_when_captions_are_scored():
    # Values of pycocoevalcap 1.2's Cider on the same words.
    references = [
        ["a man rides a red horse on the beach", "a person on a horse near the sea", "man riding horse"],
        ["two dogs play in the green grass", "dogs playing on a lawn"],
        ["a red bus drives down the street", "the bus is on a street", "a bus and a car on a street with people"],
        ["a bowl of fruit on a wooden table", "fruit in a bowl"],
    ]
    given = ["A man on a horse, at the beach.", "Two dogs in the grass"]
    given += ["a red bus on the street on the street on the street", "a cat"]
    scorer = CiderScorer(references)
    found = [scorer.score(*pair) for pair in zip(given, references, strict=True)]
    assert found == pytest.approx([1.6804399642697418, 1.8130994079274148, 0.7549761719342467, 0.0])
