"""Feed-forward of both architectures."""

from __future__ import annotations

import torch
from torch import nn

from .configuration_compressor import CompressorConfig


class FeedForward(nn.Module):
    """LayerNorm, Linear, GELU, Linear; no biases in the linears. The caller adds the residual.

    Args:
        config: Widths.
    """

    def __init__(self, config: CompressorConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.up = nn.Linear(config.hidden_size, config.feed_forward_size, bias=False)
        self.activation = nn.GELU()
        self.down = nn.Linear(config.feed_forward_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map ``(..., D)`` to ``(..., D)``."""
        return self.down(self.activation(self.up(self.norm(hidden_states))))
