"""Training samples: messages in reading order, their images, what was found in these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from moai.data.conversations import text_of
from verbalizers import Scene

__all__ = ["BadSampleError", "Sample"]


class BadSampleError(ValueError):
    """A sample that cannot be trained on; the message says why."""


@dataclass(frozen=True)
class Sample:
    """One training sample.

    Attributes:
        place: Where it comes from: file, line and turn, or scene.
        messages: As :func:`moai.data.conversations.parse_conversation` writes them: parts in reading order, texts are
            data. The last one is learned.
        images: Of the parts of type image, in reading order; RGB.
        scenes: What was found, one per image, None = nobody looked; None = nobody looks at this data set.
        targets: Places of the messages that carry a loss.
        weight: How much each of its targets counts in the loss.
    """

    place: str
    messages: tuple[Mapping[str, Any], ...]
    images: tuple[Image.Image, ...] = ()
    scenes: tuple[Scene | None, ...] | None = None
    targets: tuple[int, ...] = (-1,)
    weight: float = 1.0

    @property
    def prompt(self) -> list[Mapping[str, Any]]:
        """What stands before the first message with a loss."""
        return list(self.messages[: self.targets[0] % len(self.messages)])

    @property
    def answer(self) -> str:
        """Text of the last message."""
        return text_of(self.messages[-1])
