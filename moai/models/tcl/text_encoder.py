"""Text encoder of TCL: BERT's lower layers read text, its upper layers read the image too; head for masked words."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEmbeddings, BertLayer, BertPredictionHeadTransform

__all__ = ["MaskedWordHead", "TCLTextEncoder"]


class MaskedWordHead(nn.Module):
    """Words of hidden states; the output weights are the word embedding.

    Args:
        config: Of the text encoder.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.transform = BertPredictionHeadTransform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, states: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """``(B, L, D)`` states and ``(vocabulary, D)`` word embedding -> ``(B, L, vocabulary)`` logits."""
        return F.linear(self.transform(states), embedding, self.bias)


class TCLTextEncoder(nn.Module):
    """BERT in two halves.

    Args:
        config: Of the BERT.
        num_text_layers: Layers of the lower half.
        vision_width: Width of the image tokens that the upper half reads.
    """

    def __init__(self, config: BertConfig, num_text_layers: int, vision_width: int) -> None:
        super().__init__()
        self.num_text_layers = num_text_layers
        fusing = deepcopy(config)
        fusing.is_decoder = fusing.add_cross_attention = True
        self.embeddings = BertEmbeddings(config)
        self.layers = nn.ModuleList(
            BertLayer(config if number < num_text_layers else fusing, layer_idx=number)
            for number in range(config.num_hidden_layers)
        )
        for layer in self.layers[num_text_layers:]:
            layer.attention.self.is_causal = False  # reads both ways, unlike a decoder
            cross = layer.crossattention.self
            cross.key = nn.Linear(vision_width, cross.all_head_size)
            cross.value = nn.Linear(vision_width, cross.all_head_size)
        self.lm_head = MaskedWordHead(config)

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Read text alone.

        Args:
            input_ids: ``(B, L)``.
            attention_mask: ``(B, L)``, 1 = a token, 0 = padding.

        Returns:
            ``(B, L, D)``.
        """
        states = self.embeddings(input_ids)
        mask = _additive_mask(attention_mask, states)
        for layer in self.layers[: self.num_text_layers]:
            states = layer(states, mask)
        return states

    def fuse(self, states: torch.Tensor, attention_mask: torch.Tensor, image_states: torch.Tensor) -> torch.Tensor:
        """Read text and image together.

        Args:
            states: ``(B, L, D)`` of :meth:`encode`.
            attention_mask: ``(B, L)``.
            image_states: ``(B, V, vision width)``, class token first.

        Returns:
            ``(B, L, D)``.
        """
        mask = _additive_mask(attention_mask, states)
        for layer in self.layers[self.num_text_layers :]:
            states = layer(states, mask, image_states)
        return states

    def predict_words(self, states: torch.Tensor) -> torch.Tensor:
        """Logits ``(B, L, vocabulary)`` of fused states."""
        return self.lm_head(states, self.embeddings.word_embeddings.weight)


def _additive_mask(attention_mask: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """``(B, L)`` -> ``(B, 1, 1, L)``, what is added to attention scores."""
    is_padding = attention_mask[:, None, None, :] == 0
    return torch.zeros_like(is_padding, dtype=states.dtype).masked_fill(is_padding, torch.finfo(states.dtype).min)
