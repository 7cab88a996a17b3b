"""Text decoder: RoBERTa read from left to right, with cross-attention to the vision encoder and adaptors."""

from __future__ import annotations

import torch
from torch import nn
from transformers import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.roberta.modeling_roberta import (
    RobertaAttention,
    RobertaEmbeddings,
    RobertaIntermediate,
    RobertaLayer,
    RobertaOutput,
)

from ..cache_names import as_keyword
from .adaptor import Adaptor
from .configuration_prismer import PrismerConfig

__all__ = ["PrismerTextDecoder", "PrismerTextLayer"]


class PrismerTextLayer(GradientCheckpointingLayer):
    """RoBERTa's layer with cross-attention and an adaptor between attention and feed-forward layer.

    Args:
        config: Of the whole model.
        layer_idx: Place of the layer, for the cache.
    """

    def __init__(self, config: PrismerConfig, layer_idx: int) -> None:
        super().__init__()
        text, vision_width = config.text_config, config.vision_config.hidden_size
        self.attention = RobertaAttention(text, is_causal=True, layer_idx=layer_idx)
        self.crossattention = RobertaAttention(text, layer_idx=layer_idx, is_cross_attention=True)
        self.crossattention.self.key = nn.Linear(vision_width, text.hidden_size)
        self.crossattention.self.value = nn.Linear(vision_width, text.hidden_size)
        self.adaptor = Adaptor(text.hidden_size, is_normed_late=True)
        self.intermediate = RobertaIntermediate(text)
        self.output = RobertaOutput(text)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        encoder_hidden_states: torch.Tensor,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """``(B, L, D), (B, V, vision width) -> (B, L, D)``."""
        hidden_states = self.attention(hidden_states, attention_mask, **as_keyword(cache))[0]
        hidden_states = self.crossattention(
            hidden_states, encoder_hidden_states=encoder_hidden_states, **as_keyword(cache)
        )[0]
        hidden_states = self.adaptor(hidden_states)
        return self.output(self.intermediate(hidden_states), hidden_states)


class PrismerTextDecoder(nn.Module):
    """Word ids and the vision encoder's tokens to hidden states.

    Behind the layers stands one more ordinary layer of RoBERTa, without cross-attention.

    Args:
        config: Of the whole model.
    """

    def __init__(self, config: PrismerConfig) -> None:
        super().__init__()
        self.config = text = config.text_config
        self.embeddings = RobertaEmbeddings(text)
        self.layers = nn.ModuleList(PrismerTextLayer(config, index) for index in range(text.num_hidden_layers))
        self.output_layer = RobertaLayer(text, layer_idx=text.num_hidden_layers)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Decode.

        Args:
            input_ids: ``(B, L)`` int64, those that the cache does not hold.
            encoder_hidden_states: ``(B, V, vision width)``.
            attention_mask: ``(B, cached + L)``, 0 = padding, on either side; None = none.
            cache: Keys and values so far; it grows.
            inputs_embeds: ``(B, L, D)`` of words, instead of ``input_ids``.

        Returns:
            ``(B, L, D)``.
        """
        if input_ids is None and attention_mask is None:
            cached = 0 if cache is None else cache.get_seq_length()
            attention_mask = inputs_embeds.new_ones(len(inputs_embeds), cached + inputs_embeds.shape[1])
        positions = self._positions(inputs_embeds if input_ids is None else input_ids, attention_mask, cache)
        hidden_states = self.embeddings(input_ids, position_ids=positions, inputs_embeds=inputs_embeds)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=attention_mask,
            **as_keyword(cache),
        )
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, encoder_hidden_states, cache)
        return self.output_layer(hidden_states, mask, **as_keyword(cache))

    def _positions(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, cache: Cache | None
    ) -> torch.Tensor:
        """RoBERTa's positions ``(B, L)``: padding is not counted and stands at its own id."""
        cached = 0 if cache is None else cache.get_seq_length()
        if attention_mask is None:
            pads = torch.ones_like(input_ids[:, :1]).expand(-1, cached)
            attention_mask = torch.cat([pads, input_ids.ne(self.config.pad_token_id).long()], dim=1)
        keep = attention_mask.long()
        return (keep.cumsum(dim=1) * keep + self.config.pad_token_id)[:, -input_ids.shape[1] :]
