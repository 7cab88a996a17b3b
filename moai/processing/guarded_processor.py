"""What our processors share: control tokens in data stay text, rows of ids are padded, an image is loaded once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from transformers.processing_utils import ProcessorMixin

from .control_tokens import ControlTokenGuard
from .image_loading import load_image
from .pixel_values import compute_pixel_values
from .sample_batching import pad_rows, unique_objects

__all__ = ["GuardedProcessor", "load_pixels"]


class GuardedProcessor(ProcessorMixin):
    """A processor whose texts are data.

    Attributes:
        control_tokens: Tokens beside the tokenizer's special ones that no text may give.
    """

    control_tokens: ClassVar[tuple[str, ...]] = ()

    @property
    def model_input_names(self) -> list[str]:
        """Keys of a full batch."""
        return ["input_ids", "attention_mask", "pixel_values"]

    @property
    def pad_id(self) -> int:
        """Id of padding."""
        return self.tokenizer.pad_token_id

    @property
    def guard(self) -> ControlTokenGuard:
        """The line between prompt and data."""
        cached = self.__dict__.get("_guard")
        if cached is None or cached.tokenizer is not self.tokenizer:
            cached = self.__dict__["_guard"] = ControlTokenGuard(self.tokenizer, self.control_tokens)
        return cached

    def pad_ids(self, rows: Sequence[Sequence[int]], side: str) -> dict[str, Any]:
        """``input_ids`` and ``attention_mask`` ``(B, L)`` of rows of ids.

        Args:
            rows: Ids.
            side: Where padding stands, "left" or "right".
        """
        mask = [[1] * len(row) for row in rows]
        return {"input_ids": pad_rows(rows, self.pad_id, side), "attention_mask": pad_rows(mask, 0, side)}

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """Text of token ids; see transformers."""
        return self.tokenizer.batch_decode(*args, **kwargs)


def load_pixels(
    images: Sequence[Any], image_processor: Any, max_pixels: int, allow_urls: bool = False, **options: Any
) -> np.ndarray:
    """Pixels of images ``(I, 3, H, W)`` float32; an object that stands among them twice is looked at once.

    Args:
        images: Sources.
        image_processor: Makes the pixels.
        max_pixels: Largest image that is decoded.
        allow_urls: Whether http(s) addresses are followed.
        **options: To :func:`.load_image`.

    Raises:
        ValueError: An image cannot be read.
    """
    unique, places = unique_objects(images)
    loaded = [load_image(image, max_pixels, allow_urls, **options) for image in unique]
    return compute_pixel_values(image_processor, loaded)[places]
