"""Outputs of the models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

__all__ = ["FlamingoCausalLMOutputWithPast", "FlamingoModelOutputWithPast"]


@dataclass
class FlamingoModelOutputWithPast(BaseModelOutputWithPast):
    """Output of :class:`.FlamingoModel`.

    Attributes:
        last_hidden_state: ``(B, L, D)`` after the final norm.
        cache: The decoder's cache; ``past_key_values`` is its name before transformers 5.24.
        hidden_states: Embeddings and every layer's output when asked for.
        attentions: The decoder's attention weights when asked for (eager attention).
        media_states: ``(B, T, N, V)`` resampled images; for passes that go on from this one.
        media_times: ``(B, L)`` int64 number of images before or at each token; likewise.
    """

    media_states: torch.Tensor | None = None
    media_times: torch.Tensor | None = None


@dataclass
class FlamingoCausalLMOutputWithPast(CausalLMOutputWithPast):
    """Output of :class:`.FlamingoForConditionalGeneration`: that of :class:`.FlamingoModel`, with loss and logits.

    Attributes:
        loss: Mean next-token cross-entropy over labels that are not -100.
        logits: ``(B, L, vocab_size)``, or the last ``logits_to_keep`` positions.
    """

    media_states: torch.Tensor | None = None
    media_times: torch.Tensor | None = None
