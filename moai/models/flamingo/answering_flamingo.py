"""Flamingo behind a pipeline: few-shot prompts, free answers, and choices among given ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from ..interleaved.answering_interleaved import InterleavedAnswering
from .modeling_flamingo import FlamingoForConditionalGeneration
from .processing_flamingo import FlamingoProcessor
from .prompts import DEFAULT_PROMPT, STOPS, cut_answer

__all__ = ["FlamingoAnswering"]


class FlamingoAnswering(InterleavedAnswering):
    """A Flamingo with its processor; its options are those of :class:`.InterleavedAnswering`.

    Args:
        model: The model.
        processor: Its processor.

    Raises:
        ValueError: They do not belong together.
    """

    model_class = FlamingoForConditionalGeneration
    processor_class = FlamingoProcessor

    def __init__(self, model: FlamingoForConditionalGeneration, processor: FlamingoProcessor) -> None:
        super().__init__(model, processor)
        wanted = (model.config.image_token_id, model.config.end_of_chunk_token_id)
        got = (processor.image_token_id, processor.end_of_chunk_token_id)
        if wanted != got:
            raise ValueError(
                f"expected a processor whose ids of <image> and <|endofchunk|> are {wanted}, as the model's, got {got}."
                " Load both from one folder."
            )

    @property
    def num_latents(self) -> int:
        """See :attr:`.Answering.num_latents`."""
        return self.model.config.num_latents

    def prepare_conversation(
        self, images: Sequence[Image.Image], messages: Sequence[Mapping[str, Any]], max_new_tokens: int
    ) -> list[dict[str, Any]]:
        """See :meth:`.InterleavedAnswering.prepare_conversation`; there must be an image."""
        if not images:
            raise ValueError("expected at least one image, got none: this model looks at one with every word. Send it.")
        return super().prepare_conversation(images, messages, max_new_tokens)

    def finish_text(self, text: str, options: Mapping[str, Any]) -> str:
        """See :meth:`.Answering.finish_text`."""
        return cut_answer(text, options.get("prompt", DEFAULT_PROMPT))

    def list_stops(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """See :meth:`.Answering.list_stops`."""
        return STOPS[options.get("prompt", DEFAULT_PROMPT)]

    def pool_features(self, outputs: Any) -> torch.Tensor:
        """See :meth:`.InterleavedAnswering.pool_features`: the pooled output, else the mean of the tokens."""
        pooled = getattr(outputs, "pooler_output", None)
        return outputs.last_hidden_state.mean(dim=1) if pooled is None else pooled
