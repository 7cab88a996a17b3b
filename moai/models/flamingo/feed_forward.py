"""The feed-forward layer of resampler and gated blocks."""

from __future__ import annotations

from torch import nn
from transformers.activations import ACT2FN

__all__ = ["FeedForward"]


class FeedForward(nn.Sequential):
    """LayerNorm, linear, activation, linear; no biases. ``(..., D) -> (..., D)``.

    Args:
        width: D.
        mult: Inner width divided by D.
        activation: Its name.
    """

    def __init__(self, width: int, mult: int, activation: str) -> None:
        super().__init__(
            nn.LayerNorm(width),
            nn.Linear(width, width * mult, bias=False),
            ACT2FN[activation],
            nn.Linear(width * mult, width, bias=False),
        )
