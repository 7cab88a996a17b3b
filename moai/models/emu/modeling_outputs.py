"""Outputs of the models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

__all__ = ["EmuCausalLMOutputWithPast", "EmuModelOutputWithPast"]


@dataclass
class EmuModelOutputWithPast(BaseModelOutputWithPast):
    """Output of :class:`.EmuModel`.

    Attributes:
        last_hidden_state: ``(B, L, D)`` after the final norm.
        cache: The decoder's cache; ``past_key_values`` is its name before transformers 5.24.
        hidden_states: Embeddings and every layer's output when asked for.
        attentions: The decoder's attention weights when asked for (eager attention).
        inputs_embeds: ``(B, L, D)`` what the decoder read, images in their places.
    """

    inputs_embeds: torch.Tensor | None = None


@dataclass
class EmuCausalLMOutputWithPast(CausalLMOutputWithPast):
    """Output of :class:`.EmuForConditionalGeneration`: that of :class:`.EmuModel`, with losses and logits.

    Attributes:
        loss: ``text_loss`` plus the weighted ``regression_loss``.
        logits: ``(B, L, vocab_size)``, or the last ``logits_to_keep`` positions.
        text_loss: Mean next-token cross-entropy over labels that are not -100.
        regression_loss: Mean squared error of the next embeddings of images; None where it is not learned.
    """

    text_loss: torch.Tensor | None = None
    regression_loss: torch.Tensor | None = None
    inputs_embeds: torch.Tensor | None = None
