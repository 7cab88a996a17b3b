"""Vision features to the decoder's width."""

from __future__ import annotations

import torch
from torch import nn
from transformers.activations import ACT2FN

from .configuration_moai import MoAIConfig


class MoAIMultiModalProjector(nn.Module):
    """Vision features to decoder width: Linear, GELU, Linear (paper, section 3.1).

    Args:
        config: Widths and activation.
    """

    def __init__(self, config: MoAIConfig) -> None:
        super().__init__()
        width = config.text_config.hidden_size
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, width)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(width, width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map ``(B, P, vision width)`` to ``(B, P, D)``."""
        return self.linear_2(self.act(self.linear_1(features)))
