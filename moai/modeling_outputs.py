"""What the models return."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import ModelOutput

from mixer import LayerRouting


@dataclass
class MoAIModelOutputWithPast(BaseModelOutputWithPast):
    """Output of :class:`MoAIModel`.

    Attributes:
        last_hidden_state: ``(B, L, D)`` after the final norm.
        past_key_values: The decoder's cache.
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
class MoAICausalLMOutputWithPast(ModelOutput):
    """Output of :class:`MoAIForConditionalGeneration`.

    Attributes:
        loss: Mean next-token cross-entropy over labels that are not -100.
        logits: ``(B, L, vocab_size)``, or the last ``logits_to_keep`` positions.
        past_key_values: The decoder's cache.
        hidden_states: Embeddings and every layer's output when asked for.
        attentions: Attention weights when asked for (eager attention).
        image_hidden_states: ``(images, patches, D)`` projected image features.
        auxiliary_hidden_states: ``(B, N, D)`` compressed auxiliary tokens.
        routing: One :class:`mixer.LayerRouting` per mixer layer when asked for.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_hidden_states: torch.Tensor | None = None
    auxiliary_hidden_states: torch.Tensor | None = None
    routing: tuple[LayerRouting, ...] | None = None
