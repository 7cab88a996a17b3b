"""Outputs of the models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from mixer import LayerRouting

from .cache_names import CACHE_NAME


class _BothCacheNames:
    """Before 5.24 transformers' outputs know ``past_key_values`` only; later ones answer to both names themselves."""

    if CACHE_NAME != "cache":

        @property
        def cache(self) -> Cache | None:
            """The decoder's cache under its new name."""
            return self.past_key_values


@dataclass
class MoAIModelOutputWithPast(_BothCacheNames, BaseModelOutputWithPast):
    """Output of :class:`MoAIModel`.

    Attributes:
        last_hidden_state: ``(B, L, D)`` after the final norm.
        cache: The decoder's cache; ``past_key_values`` is its name before transformers 5.24.
        hidden_states: Embeddings and every layer's output when asked for.
        attentions: Attention weights when asked for (eager attention).
        image_hidden_states: ``(images, patches, D)`` projected image features.
        auxiliary_hidden_states: ``(B, N, D)`` compressed auxiliary tokens.
        routing: One :class:`mixer.LayerRouting` per mixer layer when asked for.
    """

    image_hidden_states: torch.Tensor | None = None
    auxiliary_hidden_states: torch.Tensor | None = None
    routing: tuple[LayerRouting, ...] | None = None


@dataclass
class MoAICausalLMOutputWithPast(_BothCacheNames, CausalLMOutputWithPast):
    """Output of :class:`MoAIForConditionalGeneration`.

    Attributes:
        loss: Mean next-token cross-entropy over labels that are not -100.
        logits: ``(B, L, vocab_size)``, or the last ``logits_to_keep`` positions.
        cache: The decoder's cache; ``past_key_values`` is its name before transformers 5.24.
        hidden_states: Embeddings and every layer's output when asked for.
        attentions: Attention weights when asked for (eager attention).
        image_hidden_states: ``(images, patches, D)`` projected image features.
        auxiliary_hidden_states: ``(B, N, D)`` compressed auxiliary tokens.
        routing: One :class:`mixer.LayerRouting` per mixer layer when asked for.
    """

    image_hidden_states: torch.Tensor | None = None
    auxiliary_hidden_states: torch.Tensor | None = None
    routing: tuple[LayerRouting, ...] | None = None
