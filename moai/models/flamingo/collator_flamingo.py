"""Training samples as Flamingo reads them: questions with answers, and documents with images between their texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from moai.data.samples import Sample

from ...processing.token_roles import IGNORE_INDEX
from ..interleaved.collator_interleaved import InterleavedCollator
from .gated_cross_attention import count_media
from .labels import label_interleaved
from .prompts import END_OF_CHUNK_TOKEN, IMAGE_TOKEN

__all__ = ["FlamingoCollator"]


class FlamingoCollator(InterleavedCollator):
    """Samples for Flamingo. Of a question the answer is learned, of a document all text that belongs to an image."""

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """See :meth:`.SampleCollator.__call__`."""
        batch = super().__call__(samples)
        # A learned prompt hands the model embeddings, in which images do not show while their tokens are untrained.
        return batch | {"media_times": count_media(batch["input_ids"], self.processor.image_token_id)}

    def write_document(self, parts: Sequence[Mapping[str, Any]]) -> str:
        """``text<image>text<|endofchunk|><image>text``, as OpenFlamingo writes pages."""
        text, has_image = "", False
        for part in parts:
            if part["type"] == "text":
                text += self.processor.guard.escape(part["text"].strip())
            else:
                text += (END_OF_CHUNK_TOKEN if has_image else "") + IMAGE_TOKEN
                has_image = True
        return text

    def label_document(self, input_ids: torch.Tensor) -> torch.Tensor:
        """See :meth:`.InterleavedCollator.label_document`."""
        tokens = self.processor.image_token_id, self.processor.end_of_chunk_token_id
        return label_interleaved(input_ids[None], *tokens, IGNORE_INDEX)[0]
