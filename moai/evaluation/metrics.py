"""Metrics of answers: exact match, boxes by overlap, F1 of the names that a description mentions."""

from __future__ import annotations

import re
from functools import lru_cache

from moai.scenes.vocabulary import OBJECT_CLASSES, STUFF_NAMES, plural

from .intervals import wilson_interval

__all__ = ["box_iou", "is_right", "mentioned_names", "name_f1", "parse_box", "wilson_interval"]

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


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .")


def is_right(expected: str, given: str) -> bool:
    """Whether an answer is right: the same words whatever their case, or a box with an IoU of at least 0.5."""
    box = parse_box(expected)
    if box is not None:
        answered = parse_box(given)
        return answered is not None and box_iou(box, answered) >= MIN_BOX_IOU
    return _plain(expected) == _plain(given)


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


def name_f1(expected: str, given: str) -> float:
    """F1 of the names mentioned in a description against those of the reference; 1 where both name nothing."""
    wanted, said = mentioned_names(expected), mentioned_names(given)
    if not wanted and not said:
        return 1.0
    return 2 * len(wanted & said) / (len(wanted) + len(said))
