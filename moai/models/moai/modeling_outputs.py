"""Outputs of the models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils import ModelOutput

from mixer import LayerRouting

from ..cache_names import CACHE_NAME


class _MultimodalOutput:
    """What our outputs have in common."""

    def to_tuple(self) -> tuple[Any, ...]:
        """Make a tuple of what is there, of the vision tower's output too, as transformers' multimodal models do."""
        return tuple(item.to_tuple() if isinstance(item, ModelOutput) else item for item in super().to_tuple())

    # Before 5.24 transformers' outputs know ``past_key_values`` only; later ones answer to both names themselves.
    if CACHE_NAME != "cache":

        @property
        def cache(self) -> Cache | None:
            """The decoder's cache under its new name."""
            return self.past_key_values


@dataclass
class MoAIModelOutputWithPast(_MultimodalOutput, BaseModelOutputWithPast):
    """Output of :class:`MoAIModel`.

    Attributes:
        last_hidden_state: ``(B, L, D)`` after the final norm.
        cache: The decoder's cache; ``past_key_values`` is its name before transformers 5.24.
        hidden_states: Embeddings and every layer's output when asked for.
        attentions: Attention weights when asked for (eager attention).
        image_outputs: The vision tower's output where it ran, projected features as ``pooler_output``.
        image_hidden_states: ``(images, patches, D)`` projected image features.
        auxiliary_hidden_states: ``(B, N, D)`` compressed auxiliary tokens.
        routing: One :class:`mixer.LayerRouting` per mixer layer when asked for.
    """

    image_outputs: BaseModelOutputWithPooling | None = None
    image_hidden_states: torch.Tensor | None = None
    auxiliary_hidden_states: torch.Tensor | None = None
    routing: tuple[LayerRouting, ...] | None = None


@dataclass
class MoAICausalLMOutputWithPast(_MultimodalOutput, CausalLMOutputWithPast):
    """Output of :class:`MoAIForConditionalGeneration`: that of :class:`MoAIModel`, with loss and logits.

    Attributes:
        loss: Mean next-token cross-entropy over labels that are not -100.
        logits: ``(B, L, vocab_size)``, or the last ``logits_to_keep`` positions.
    """

    image_outputs: BaseModelOutputWithPooling | None = None
    image_hidden_states: torch.Tensor | None = None
    auxiliary_hidden_states: torch.Tensor | None = None
    routing: tuple[LayerRouting, ...] | None = None
