"""Causal former: a vision tower's features to a sequence of embeddings in which each sees those before it."""

from __future__ import annotations

import torch
from torch import nn

from .configuration_emu import EmuConfig

__all__ = ["CausalFormer"]


class CausalFormer(nn.Module):
    """T5's decoder stack over learned tokens, with cross-attention to an image.

    Self-attention is causal and has T5's relative position bias; the attention is not scaled. Keys and values of
    the cross-attention come from the vision tower's width.

    Args:
        config: ``num_image_tokens`` and the widths count.
    """

    def __init__(self, config: EmuConfig) -> None:
        super().__init__()
        # Here, as its module takes AutoModel, which imports ours.
        from transformers.models.t5.modeling_t5 import T5Stack

        sizes, vision_width = config.causal_former_config, config.vision_config.hidden_size
        inner = sizes.num_heads * sizes.d_kv
        self.causal_tokens = nn.Parameter(torch.zeros(1, config.num_image_tokens, sizes.d_model))
        self.stack = T5Stack(sizes)
        self.stack.embed_tokens = None  # it reads no words
        for block in self.stack.block:
            attention = block.layer[1].EncDecAttention
            attention.k = nn.Linear(vision_width, inner, bias=False)
            attention.v = nn.Linear(vision_width, inner, bias=False)
        self.projection = nn.Linear(sizes.d_model, config.text_config.hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Encode images.

        Args:
            features: ``(P, N, V)`` of the vision tower.

        Returns:
            ``(P, num_image_tokens, D)``.
        """
        tokens = self.causal_tokens.expand(len(features), -1, -1)
        outputs = self.stack(inputs_embeds=tokens, encoder_hidden_states=features, use_cache=False)
        return self.projection(outputs.last_hidden_state)
