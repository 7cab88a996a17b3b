"""Training samples as Emu reads them: questions with answers, and documents of texts and images in any order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from moai.data.samples import Sample

from ..interleaved.collator_interleaved import InterleavedCollator, is_document
from .losses import mask_images
from .prompts import IMAGE_TOKEN

__all__ = ["EmuCollator"]


class EmuCollator(InterleavedCollator):
    """Samples for Emu. Of a question the answer is learned; of a document all of its text and all of its images."""

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """See :meth:`.SampleCollator.__call__`; ``learns_images`` ``(B,)`` says which rows are documents."""
        found = torch.tensor([is_document(sample.messages) for sample in samples])
        return super().__call__(samples) | {"learns_images": found}

    def write_document(self, parts: Sequence[Mapping[str, Any]]) -> str:
        """Texts and images one behind the other, without anything in between."""
        escape = self.processor.guard.escape
        return "".join(IMAGE_TOKEN if part["type"] == "image" else escape(part["text"]) for part in parts)

    def label_document(self, input_ids: torch.Tensor) -> torch.Tensor:
        """All but images; the first token has nothing before it and is not learned in any case."""
        return mask_images(input_ids, self.processor.image_token_ids)
