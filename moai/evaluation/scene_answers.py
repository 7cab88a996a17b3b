"""Metrics of answers: exact match, boxes by overlap, F1 of the names that a description mentions."""

from __future__ import annotations

import re
from functools import lru_cache

from moai.scenes.vocabulary import OBJECT_CLASSES, STUFF_NAMES, SYNONYMS, plural

__all__ = [
    "box_iou",
    "has_repeated_clause",
    "is_abstention",
    "is_right",
    "mentioned_names",
    "name_f1",
    "normalize_words",
    "parse_box",
]

_BOX = re.compile(r"\[\s*([\d.]+)\s*,\s*([\d.]+)\s*,\s*([\d.]+)\s*,\s*([\d.]+)\s*\]")
MIN_BOX_IOU = 0.5


def parse_box(text: str) -> tuple[float, float, float, float] | None:
    """The first "[x0, y0, x1, y1]" of a text, or None."""
    found = _BOX.search(text)
    if found is None:
        return None
    try:
        x0, y0, x1, y1 = (float(value) for value in found.groups())
    except ValueError:  # "1.2.3" passes the pattern
        return None
    return x0, y0, x1, y1


def box_iou(first: tuple[float, float, float, float], second: tuple[float, float, float, float]) -> float:
    """Intersection over union of two (x0, y0, x1, y1) boxes; 0 where one is empty."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    if width <= 0 or height <= 0 or min(areas) <= 0:
        return 0.0
    return width * height / (sum(areas) - width * height)


def normalize_words(text: str) -> str:
    """Words without their case, the space between them and the full stop behind."""
    return " ".join(text.casefold().split()).strip(" .")


def is_right(expected: str, given: str) -> bool:
    """Whether an answer is right.

    The same words whatever their case; a box with an IoU of at least 0.5; for what is absent a sentence that says so of
    the same thing, whatever it is called; for what cannot be told any sentence that says so.
    """
    box = parse_box(expected)
    if box is not None:
        answered = parse_box(given)
        return answered is not None and box_iou(box, answered) >= MIN_BOX_IOU
    if is_abstention(expected):
        return is_abstention(given) and _missed(expected) == _missed(given)
    return normalize_words(expected) == normalize_words(given)


_ABSTENTION = re.compile(r"^(there (is|are) (no|not any)\b|i (can't|cannot|can not) tell\b)", re.IGNORECASE)


def is_abstention(text: str) -> bool:
    """Whether an answer says that something is not there, or that the image does not tell."""
    return _ABSTENTION.match(text.strip()) is not None


def _missed(text: str) -> str | None:
    """What an abstention says is not there, by its common name; None = it says that the image does not tell."""
    found = re.match(r"there (?:is|are) (?:no|not any) (.+)", normalize_words(text))
    if found is None:
        return None
    called = {other: name for name, others in SYNONYMS.items() for other in others}
    return called.get(found[1], found[1])


@lru_cache(maxsize=1)
def _name_pattern() -> tuple[re.Pattern[str], dict[str, str]]:
    forms = {name: name for name in (*OBJECT_CLASSES, *STUFF_NAMES)}
    forms |= {plural(name): name for name in OBJECT_CLASSES}
    longest_first = sorted(forms, key=len, reverse=True)
    return re.compile(r"\b(?:" + "|".join(map(re.escape, longest_first)) + r")\b", re.IGNORECASE), forms


def mentioned_names(text: str) -> frozenset[str]:
    """Names of objects and stuff that a text mentions, plurals included.

    What a sign says is left out: "PIZZA" on a sign is no pizza.
    """
    pattern, forms = _name_pattern()
    text = re.split(r"The signs? says? |The image includes text descriptions", text)[0]
    return frozenset(forms[found.casefold()] for found in pattern.findall(text) if found.casefold() in forms)


def _clauses(text: str) -> list[str]:
    """What a description says, bit by bit: "There are a dog and a cat. The dog is on the grass." has three."""
    text = re.split(r"The signs? says? ", text)[0]
    parts = re.split(r"\. |, and |, | and |\.$", re.sub(r"^There (?:is|are) (?:only )?", "", text.strip()))
    return [part.strip().casefold() for part in parts if part.strip()]


def has_repeated_clause(text: str) -> bool:
    """Whether a description says the same twice."""
    clauses = _clauses(text)
    return len(set(clauses)) < len(clauses)


def name_f1(expected: str, given: str) -> float:
    """F1 of the names mentioned in a description against those of the reference; 1 where both name nothing.

    What is repeated counts as said and wrong each time, so that saying more never helps.
    """
    wanted, said = mentioned_names(expected), mentioned_names(given)
    clauses = _clauses(given)
    repeated = len(clauses) - len(set(clauses))
    if not wanted and not said and not repeated:
        return 1.0
    return 2 * len(wanted & said) / (len(wanted) + len(said) + repeated)
