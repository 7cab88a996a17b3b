"""Parts that all sentences share: openings, lists, numbering, and the settings of what is included.

The four sentences are those of the released MoAI (golden-tested); its paper states the templates (arXiv
2403.07508, section 3, "Verbalization").
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from verbalizers.core.validation import check_flags, check_range

__all__ = [
    "BOXES_OPENING",
    "RELATIONS_OPENING",
    "TEXTS_OPENING",
    "LeftOutWarning",
    "WordSettings",
    "choose_most_confident",
    "join_sentences",
    "list_sentence",
    "number_duplicates",
    "quote",
    "strip_coco_suffixes",
    "without_control_characters",
]

BOXES_OPENING = "The image includes bounding box coordinates and their objects: "
RELATIONS_OPENING = "The image includes relationships between objects: "
TEXTS_OPENING = "The image includes text descriptions: "


class LeftOutWarning(UserWarning):
    """Findings are more than a sentence or a drawing holds: some are left out. The command line shows it."""


@dataclass(frozen=True)
class WordSettings:
    """What is worth saying. The thresholds and counts are by default the released MoAI's.

    Attributes:
        detection_threshold: lowest confidence of a detection in the text.
        relation_threshold: lowest confidence of a relation in the text.
        max_relations: how many relations are in the text at most, those of highest confidence.
        text_threshold: lowest confidence of a recognised line in the text.
        max_predictions: how many segments, detections and lines are in their sentence at most, those of highest
            confidence, with a warning: what the model reads costs time with the square of its length.
        merge_iou: a detection is left out where a segment that means the same overlaps its box by this much
            (`merging.merge_detections`); None keeps both, as the release does.
        quote_text: whether recognised lines are quoted (:func:`quote`), so that what is written in an image cannot
            pose as a prediction. False is the release's form, for models that were trained on it.
        locate_text: whether a recognised line stands behind its box, as things do, and before the thing that it is on
            (`ordering.name_carriers`): else nothing tells which sign says what. For models that were trained on it;
            the release says none.
        order_by_name: whether segments, detections and relations are said by name, equal names from left to right
            (`ordering.order_finding`), in place of the order in which they were found, and a thing has the same number
            in all sentences of a scene (`ordering.number_scene`): what is counted or described stands together. For
            models that were trained on it; the release keeps the order found, and numbers the objects of relations.
        detections_first: `merge_iou` the other way round: a segment is left out where a detection above the threshold
            shows the same thing, even by another name (`merging.find_covering`). For a detector that names better.
    """

    detection_threshold: float = 0.5
    relation_threshold: float = 0.8
    max_relations: int = 10
    text_threshold: float = 0.85
    max_predictions: int = 200
    merge_iou: float | None = 0.5
    quote_text: bool = True
    locate_text: bool = False
    order_by_name: bool = False
    detections_first: bool = False

    def __post_init__(self) -> None:
        check_range(self, "detection_threshold", "relation_threshold", "text_threshold")
        check_range(self, "max_relations", "max_predictions", high=None)
        if self.merge_iou is not None:
            check_range(self, "merge_iou", is_open=True)
        check_flags(self, "quote_text", "locate_text", "order_by_name", "detections_first")
        if self.detections_first and self.merge_iou is None:
            raise ValueError("`detections_first` merges by `merge_iou`, got null. Give an overlap, or leave one out.")


def choose_most_confident(rows: Sequence[int], confidence: np.ndarray, max_predictions: int, what: str) -> list[int]:
    """The rows of highest confidence, in the order given, and a warning where some are left out.

    Args:
        rows: those that are worth saying.
        confidence: `(N,)`, of all.
        max_predictions: how many are kept.
        what: their name in the warning.
    """
    if len(rows) <= max_predictions:
        return list(rows)
    warnings.warn(
        f"{len(rows):,} {what} are more than a sentence holds: the {max_predictions:,} of highest confidence are said, "
        f"the other {len(rows) - max_predictions:,} are left out (`WordSettings.max_predictions`).",
        LeftOutWarning,
    )
    rows = np.asarray(rows)
    return np.sort(rows[np.argsort(-confidence[rows], kind="stable")[:max_predictions]]).tolist()


def list_sentence(opening: str, items: Sequence[str]) -> str:
    """`opening` + items joined by ", and " + "."; no items give ""."""
    return opening + ", and ".join(items) + "." if items else ""


def join_sentences(sentences: Iterable[str], compat: bool = False) -> str:
    """Sentences joined with one space.

    The release joins empty ones too and so leaves blanks at the places of what was not found (`compat=True`);
    ours skips them.
    """
    return " ".join(sentence for sentence in sentences if sentence or compat)


def strip_coco_suffixes(name: str) -> str:
    """`sky-other-merged` -> `sky`: without the markers of COCO's panoptic classes."""
    return name.replace("-merged", "").replace("-other", "").replace("-stuff", "")


def number_duplicates(names: Sequence[str]) -> list[str]:
    """Names that occur more than once get " (#1)", " (#2)", ... in order; single names stay."""
    seen: dict[str, int] = {}
    numbered = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        numbered.append(f"{name} (#{seen[name]})")
    return [full if seen[name] > 1 else name for name, full in zip(names, numbered, strict=True)]


def without_control_characters(text: str) -> str:
    """Control characters (line breaks, escapes) become spaces: a line of text is one line."""
    return "".join(" " if unicodedata.category(c) == "Cc" else c for c in text)


def quote(text: str) -> str:
    """Text in double quotes; quotes and backslashes in it get a backslash, so that it cannot end its own quotation."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
