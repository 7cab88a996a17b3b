"""Projector: vision features to the decoder's width, and to their positions among its embeddings."""

from __future__ import annotations

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.utils import torch_compilable_check

from .configuration_moai import MoAIConfig


class MoAIMultiModalProjector(nn.Module):
    """Vision features to decoder width: Linear, GELU, Linear (paper, section 3.1).

    Args:
        config: Widths and activation.
    """

    def __init__(self, config: MoAIConfig) -> None:
        super().__init__()
        width = config.text_config.hidden_size
        self.linear_1 = nn.Linear(config.vision_config.hidden_size * config.num_vision_features, width)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(width, width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map ``(B, P, vision width * hidden states read)`` to ``(B, P, D)``."""
        return self.linear_2(self.act(self.linear_1(features)))


def place_image_features(inputs_embeds: torch.Tensor, image_mask: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Scatter features onto the placeholders of embeddings, in order.

    Args:
        inputs_embeds: ``(B, L, D)``.
        image_mask: ``(B, L)`` bool, True = a placeholder.
        features: ``(images, patches, D)``.

    Returns:
        ``(B, L, D)``.

    Raises:
        ValueError: If there are not as many placeholders as features.
    """
    num_slots, num_features = image_mask.sum(), features.shape[0] * features.shape[1]
    torch_compilable_check(
        num_slots == num_features,
        lambda: (
            f"Expected {num_features} image tokens ({features.shape[0]} images x {features.shape[1]} patches), got "
            f"{num_slots} in input_ids. Pass one image per `<image>` and let the processor expand it."
        ),
    )
    return inputs_embeds.masked_scatter(image_mask[..., None], features.to(inputs_embeds))
