"""Metrics: one answer against what is right, and what a whole set of them comes to.

Every score lies in [0, 1] but CIDEr's. An answer counts as right where its score reaches one half.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .cider import CiderScorer
from .questions import TestQuestion
from .scene_answers import (
    box_iou,
    has_repeated_clause,
    is_abstention,
    is_right,
    mentioned_names,
    name_f1,
    normalize_words,
    parse_box,
)
from .vqa_words import normalize_answer

__all__ = ["Metric", "Pairs", "build_metric"]

#: Questions with the answers that were given.
Pairs = Sequence[tuple[TestQuestion, str]]


@dataclass(frozen=True)
class Metric:
    """How answers are scored.

    Attributes:
        score: Of a question's answer.
        describe: More numbers about a set of answers, by name.
        label: What the mean score is called, by kind of question.
        binary: Whether an answer of a kind is right or wrong and nothing between.
    """

    score: Callable[[TestQuestion, str], float]
    label: Callable[[str], str]
    binary: Callable[[str], bool]
    describe: Callable[[Pairs], Mapping[str, Any]] = lambda pairs: {}


def build_metric(name: str, questions: Sequence[TestQuestion]) -> Metric:
    """A metric by its name.

    Args:
        name: One of :data:`moai.evaluation.question_settings.METRIC_NAMES`.
        questions: Of the whole test.
    """
    if name == "scenes":
        return Metric(
            _score_scene,
            lambda kind: "name F1" if kind == "description" else "accuracy",
            lambda kind: kind != "description",
            _describe_scenes,
        )
    if name == "cider":
        scorer = CiderScorer([question.answers for question in questions])
        return _graded("CIDEr", lambda item, given: scorer.score(given, item.answers))
    return _METRICS[name]


def _binary(score: Callable[[TestQuestion, str], bool], describe: Callable[[Pairs], Mapping[str, Any]] | None = None):
    more = {} if describe is None else {"describe": describe}
    return Metric(lambda item, given: float(score(item, given)), lambda kind: "accuracy", lambda kind: True, **more)


def _graded(label: str, score: Callable[[TestQuestion, str], float], describe: Callable | None = None) -> Metric:
    more = {} if describe is None else {"describe": describe}
    return Metric(score, lambda kind: label, lambda kind: False, **more)


# ---------------------------------------------------------------------- scenes


def _score_scene(item: TestQuestion, given: str) -> float:
    if item.kind == "description":
        return name_f1(item.answers[0], given)
    return float(is_right(item.answers[0], given))


def _describe_scenes(pairs: Pairs) -> dict[str, Any]:
    """Shares of abstentions; of descriptions those with a repeated clause and with a name of something absent."""
    described = [pair for pair in pairs if pair[0].kind == "description"]
    others = [given for item, given in pairs if item.kind != "description"]
    row: dict[str, Any] = {}
    if others:
        row["abstained"] = sum(map(is_abstention, others)) / len(others)
    if described:
        row["repeated"] = sum(has_repeated_clause(given) for _, given in described) / len(described)
        absent = [mentioned_names(g) - mentioned_names(item.answers[0]) - set(item.options) for item, g in described]
        row["absent"] = sum(map(bool, absent)) / len(described)
    return row


# ---------------------------------------------------------------------- files


def _is_exact(item: TestQuestion, given: str) -> bool:
    """The same words as one of the answers, whatever their case."""
    return normalize_words(given) in {normalize_words(answer) for answer in item.answers}


def score_vqa(item: TestQuestion, given: str) -> float:
    """VQA accuracy: over the ways to leave one of the (ten) answers out, the mean of min(matches / 3, 1)."""
    answers = list(item.answers)
    if len(answers) == 1:
        return float(normalize_answer(given) == normalize_answer(answers[0]))
    given = given.strip()
    if len(set(answers)) > 1:  # as the benchmark's code: answers that all agree are compared as they are
        answers, given = [normalize_answer(answer) for answer in answers], normalize_answer(given)
    matches = answers.count(given)
    left_out = [matches - (answer == given) for answer in answers]
    return sum(min(1.0, found / 3) for found in left_out) / len(answers)


def edit_distance(first: str, second: str) -> int:
    """Letters to insert, delete or change (Levenshtein)."""
    row = list(range(len(second) + 1))
    for i, letter in enumerate(first, start=1):
        previous, row = row, [i]
        for j, other in enumerate(second, start=1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (letter != other)))
    return row[-1]


def score_anls(item: TestQuestion, given: str) -> float:
    """Normalised Levenshtein similarity to the nearest answer, 0 below one half (arXiv 1905.13648)."""
    similarities = []
    for answer in item.answers:
        texts = [" ".join(text.lower().split()) for text in (answer, given)]
        longest = max(map(len, texts))
        similarities.append(1 - edit_distance(*texts) / longest if longest else 1.0)
    best = max(similarities)
    return best if best >= 0.5 else 0.0


def is_relaxed_right(item: TestQuestion, given: str) -> bool:
    """Numbers may differ by 5 % of what is right, other words not at all (ChartQA, arXiv 2203.10244)."""
    for answer in item.answers:
        wanted, got = _number(answer), _number(given)
        if wanted is None or got is None:
            if normalize_words(answer) == normalize_words(given):
                return True
        elif abs(got - wanted) <= 0.05 * abs(wanted):
            return True
    return False


def _number(text: str) -> float | None:
    text = text.strip().rstrip(".")
    try:
        value = float(text.rstrip("%").replace(",", "")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None  # NaN compares false


def say_yes_or_no(text: str) -> str:
    """What an answer's first sentence says: "yes", "no", or "other".

    A "no" or "not" in it is a no, as POPE (arXiv 2305.10355) counts it; what says neither is wrong here, where POPE
    takes it for a yes and MME for an answer of its own.
    """
    words = re.findall(r"[a-z']+", text.lower().split(".")[0])
    if {"no", "not"} & set(words):
        return "no"
    return "yes" if "yes" in words else "other"


def _is_yes_no_right(item: TestQuestion, given: str) -> bool:
    return say_yes_or_no(given) == say_yes_or_no(item.answers[0])


def _describe_yes_no(pairs: Pairs) -> dict[str, Any]:
    """Precision, recall and F1 of "yes", its share, and MME's accuracy+: images all of whose questions are right."""
    rows = [(say_yes_or_no(item.answers[0]), say_yes_or_no(given)) for item, given in pairs]
    true = sum(row == ("yes", "yes") for row in rows)
    said, wanted = sum(got == "yes" for _, got in rows), sum(right == "yes" for right, _ in rows)
    precision, recall = true / said if said else 0.0, true / wanted if wanted else 0.0
    images: dict[tuple[str, str], bool] = {}
    for (item, _), (right, got) in zip(pairs, rows, strict=True):
        key = item.image.key, item.kind
        images[key] = images.get(key, True) and right == got
    both = precision + recall
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / both if both else 0.0,
        "yes_ratio": said / len(rows),
        "accuracy_plus": sum(images.values()) / len(images),
        "mme_score": 100 * (sum(right == got for right, got in rows) / len(rows) + sum(images.values()) / len(images)),
    }


def find_letter(text: str) -> str | None:
    """The letter of a choice: "B", "(B)", "B. a cat", "The answer is B."; None = there is none."""
    found = re.match(r"\s*\(?([A-Za-z])\)?(?:[.:,)]|\s*$)", text) or re.search(
        r"(?<![\w'])\(?([A-Z])\)?(?![\w'])", text
    )
    return found[1].upper() if found else None


def _is_letter_right(item: TestQuestion, given: str) -> bool:
    letter = find_letter(given)
    return letter is not None and letter in {find_letter(answer) for answer in item.answers}


def score_box(item: TestQuestion, given: str) -> float:
    """Intersection over union with the nearest of the right boxes; 0 where no box is said.

    Raises:
        ValueError: What is right is no box.
    """
    wanted = [parse_box(answer) for answer in item.answers]
    if None in wanted:
        raise ValueError(f"expected [x0, y0, x1, y1] as the answer of {item.id!r}, got {item.answers}.")
    got = parse_box(given)
    return 0.0 if got is None else max(box_iou(box, got) for box in wanted)


def _describe_boxes(pairs: Pairs) -> dict[str, Any]:
    return {"at_iou_half": sum(score_box(*pair) >= 0.5 for pair in pairs) / len(pairs)}


_METRICS = {
    "exact": _binary(_is_exact),
    "vqa": _graded("VQA accuracy", score_vqa),
    "anls": _graded("ANLS", score_anls),
    "relaxed": _binary(is_relaxed_right),
    "yes_no": _binary(_is_yes_no_right, _describe_yes_no),
    "letter": _binary(_is_letter_right),
    "box_iou": _graded("IoU", score_box, _describe_boxes),
}
