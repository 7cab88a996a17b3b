"""TCLProcessor: images and captions to model inputs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from transformers import BatchFeature

from ...processing.guarded_processor import GuardedProcessor, load_pixels
from ...processing.image_loading import DEFAULT_MAX_PIXELS
from ...processing.sample_batching import as_list

__all__ = ["TCLProcessor", "clean_caption"]

_MARKS = re.compile(r"[,.'!?\"()*#:;~]")


def clean_caption(text: str, max_words: int) -> str:
    """A caption as TCL reads it: lower case, no marks, ``-`` and ``/`` are spaces, the first words.

    Args:
        text: Any text.
        max_words: How many words stay.
    """
    words = _MARKS.sub("", text.lower()).replace("-", " ").replace("/", " ").split()
    return " ".join(words[:max_words])


class TCLProcessor(GuardedProcessor):
    """Turns images and captions into a batch for ``TCLModel``.

    Args:
        image_processor: Makes ``pixel_values``: a square.
        tokenizer: BERT's, or another with a class token, a closing token and a mask.
        max_words: Words of a caption that are read.
        max_text_length: Tokens that are read, class and closing token included.
        max_image_pixels: Largest image that is decoded, in pixels.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        max_words: int = 30,
        max_text_length: int = 25,
        max_image_pixels: int = DEFAULT_MAX_PIXELS,
        **kwargs: Any,
    ) -> None:
        self.max_words, self.max_text_length = max_words, max_text_length
        self.max_image_pixels = max_image_pixels
        super().__init__(image_processor, tokenizer, **kwargs)

    def encode_caption(self, text: str) -> list[int]:
        """Ids of a caption, cleaned and cut.

        Args:
            text: Data: control tokens in it are text.
        """
        tokenizer = self.tokenizer
        ids = self.guard.encode_data(clean_caption(text, self.max_words))[: self.max_text_length - 2]
        return [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]

    def encode_captions(self, texts: Sequence[str]) -> dict[str, list[list[int]]]:
        """``input_ids`` and ``attention_mask`` of captions, padded on the right."""
        return self.pad_ids([self.encode_caption(text) for text in texts], "right")

    def __call__(
        self, images: Any = None, text: str | Sequence[str] | None = None, *, return_tensors: str = "pt"
    ) -> BatchFeature:
        """Build model inputs.

        Args:
            images: Any number; None = none.
            text: Any number of captions; None = none.
            return_tensors: "pt".

        Returns:
            ``pixel_values`` ``(I, 3, H, W)`` float32; ``input_ids``, ``attention_mask`` ``(T, L)`` int64.

        Raises:
            ValueError: There is neither, or an image cannot be read.
        """
        data: dict[str, Any] = {}
        if images is not None:
            data["pixel_values"] = load_pixels(as_list(images), self.image_processor, self.max_image_pixels)
        if text is not None:
            data |= self.encode_captions(as_list(text))
        if not data:
            raise ValueError("expected images, texts or both, got neither.")
        return BatchFeature(data, tensor_type=return_tensors)
