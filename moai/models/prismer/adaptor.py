"""Adaptor: what a frozen layer learns."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["Adaptor", "squared_relu"]


def squared_relu(x: torch.Tensor) -> torch.Tensor:
    """``relu(x) ** 2``."""
    return nn.functional.relu(x).square()


class Adaptor(nn.Module):
    """Square bottleneck with a residual connection.

    Args:
        hidden_size: Width D.
        is_normed_late: Norm behind the sum (text decoder) instead of in front (vision encoder).
    """

    def __init__(self, hidden_size: int, is_normed_late: bool) -> None:
        super().__init__()
        self.is_normed_late = is_normed_late
        self.down_proj = nn.Linear(hidden_size, hidden_size)
        self.up_proj = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """``(B, L, D) -> (B, L, D)``."""
        if self.is_normed_late:
            return self.norm(self.up_proj(squared_relu(self.down_proj(hidden_states))) + hidden_states)
        return self.up_proj(squared_relu(self.down_proj(self.norm(hidden_states)))) + hidden_states
