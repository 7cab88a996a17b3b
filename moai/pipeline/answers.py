"""What a pipeline answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from verbalizers import Scene

__all__ = ["CONFIDENCE_DIGITS", "Answer", "PipelineError", "cut_parts"]

#: Decimals of a confidence that is written: batches and machines differ in further ones.
CONFIDENCE_DIGITS = 4


@dataclass(frozen=True, eq=False)
class Answer:
    """One answer with what it rests on.

    Attributes:
        parts: Text, and images of a model that draws, in reading order; empty where there is an ``error``.
        scenes: What the verbalizers found, per image; empty where an image could not be read.
        auxiliary_text: The verbalization, as the model read it.
        missing: Kind -> why this verbalizer did not contribute. The answer was given without it.
        report: What the model tells about how it answered, by name, where it was asked to (its ``answering_X.py``).
        confidence: Probability that the model gave to its answer (:func:`moai.models.confidence.confidence_of`): with
            sampling and beams too that of the tokens chosen, before temperature; of a choice its share of all choices'.
            None where there is an ``error``, nothing was said, or the answer holds images.
        is_unsure: Whether the confidence is below the checkpoint's ``confidence_threshold``.
        error: Why there is no answer (``on_error="skip"`` only).
    """

    parts: tuple[str | Image.Image, ...]
    scenes: tuple[Scene, ...] = ()
    auxiliary_text: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    confidence: float | None = None
    is_unsure: bool = False
    error: str | None = None

    @property
    def scene(self) -> Scene | None:
        """What was found in the image, or in the first of several; None where there is none or it was not read."""
        return self.scenes[0] if self.scenes else None

    @property
    def answer(self) -> str | None:
        """The text of the answer; None where there is an ``error``."""
        return None if self.error is not None else "".join(part for part in self.parts if isinstance(part, str))

    def to_dict(self) -> dict[str, Any]:
        """Values that ``json.dumps`` accepts; images are left out."""
        return {
            "answer": self.answer,
            "confidence": None if self.confidence is None else round(self.confidence, CONFIDENCE_DIGITS),
            "is_unsure": self.is_unsure,
            "scene": None if self.scene is None else self.scene.to_dict(),
            **({"scenes": [scene.to_dict() for scene in self.scenes]} if len(self.scenes) > 1 else {}),
            "auxiliary_text": self.auxiliary_text,
            **{name: _as_plain(value) for name, value in self.report.items()},
            "missing": dict(self.missing),
            **({} if self.error is None else {"error": self.error}),
        }


def _as_plain(value: Any) -> Any:
    """A report's value without objects: those that can say themselves as a dict do."""
    if isinstance(value, Mapping):
        return {name: _as_plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_plain(item) for item in value]
    return value.to_dict() if hasattr(value, "to_dict") else value


def cut_parts(parts: Sequence[str | Image.Image], text: str) -> tuple[str | Image.Image, ...]:
    """Parts of an answer of whose text only a piece is kept.

    Args:
        parts: Text and images in reading order.
        text: What is kept: a piece of the joined text.
    """
    joined = "".join(part for part in parts if isinstance(part, str))
    if len(parts) <= 1 or text not in joined:
        return text, *(part for part in parts if not isinstance(part, str))
    start, place, kept = joined.index(text), 0, []
    for part in parts:
        if isinstance(part, str):
            first, last = max(0, start - place), max(0, start + len(text) - place)
            place, part = place + len(part), part[first:last]
        if part != "":
            kept.append(part)
    return tuple(kept)


class PipelineError(ValueError):
    """One image or question of a list cannot be answered.

    Attributes:
        index: Which one.
        outputs: The answers given before it, in order: they are not lost.
    """

    def __init__(self, message: str, index: int, outputs: Sequence[Answer] = ()) -> None:
        super().__init__(message)
        self.index = index
        self.outputs = list(outputs)
