"""FlamingoProcessor: images and texts in reading order to model inputs. It knows no verbalizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...processing.image_rows import stack_images
from ..interleaved.processing_interleaved import InterleavedProcessor
from .prompts import CHAT_TEMPLATES, END_OF_CHUNK_TOKEN, IMAGE_TOKEN, PROMPTS

__all__ = ["FlamingoProcessor"]


class FlamingoProcessor(InterleavedProcessor):
    """Turns interleaved images and texts into a batch for ``FlamingoForConditionalGeneration``.

    An answer ends with ``<|endofchunk|>``. See :class:`.InterleavedProcessor` for the arguments; without images,
    demonstrations are OpenFlamingo's "zero-shot" prompt.
    """

    control_tokens = (IMAGE_TOKEN, END_OF_CHUNK_TOKEN)
    prompts = PROMPTS
    templates = CHAT_TEMPLATES

    @property
    def model_input_names(self) -> list[str]:
        """Keys of a full batch."""
        return [*super().model_input_names, "media_mask"]

    @property
    def image_token_id(self) -> int:
        """Id of ``<image>``."""
        return self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

    @property
    def end_of_chunk_token_id(self) -> int:
        """Id of ``<|endofchunk|>``."""
        return self.tokenizer.convert_tokens_to_ids(END_OF_CHUNK_TOKEN)

    @property
    def answer_end_id(self) -> int:
        """See :attr:`.InterleavedProcessor.answer_end_id`."""
        return self.end_of_chunk_token_id

    def encode_images(self, groups: Sequence[Sequence[Any]], allow_urls: bool = False) -> dict[str, Any]:
        """See :meth:`.InterleavedProcessor.encode_images`.

        Where rows have different numbers of images, ``media_mask`` ``(B, T)`` int64 says which are none (0).
        """
        values, mask = stack_images(groups, self.image_processor, self.max_image_pixels, allow_urls)
        return {"pixel_values": values} | ({} if mask.all() else {"media_mask": mask.astype(np.int64)})
