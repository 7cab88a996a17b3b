"""Experts resampler: the tokens of all experts' maps to a fixed number of latents."""

from __future__ import annotations

import torch
from torch import nn

from .adaptor import squared_relu

__all__ = ["ExpertsResampler", "ResamplerBlock"]


class ResamplerBlock(nn.Module):
    """Latents attend to themselves and to the tokens, then a feed-forward layer.

    Args:
        hidden_size: Width D.
        num_heads: Attention heads.
    """

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(hidden_size, num_heads, batch_first=True)
        self.norm_latents = nn.LayerNorm(hidden_size)
        self.norm_tokens = nn.LayerNorm(hidden_size)
        self.norm_feed_forward = nn.LayerNorm(hidden_size)
        self.fc1 = nn.Linear(hidden_size, 4 * hidden_size)
        self.fc2 = nn.Linear(4 * hidden_size, hidden_size)

    def forward(self, latents: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """``(B, N, D), (B, L, D) -> (B, N, D)``."""
        queries = self.norm_latents(latents)
        keys = torch.cat([queries, self.norm_tokens(tokens)], dim=1)  # (B, N + L, D)
        latents = latents + self.attention(queries, keys, keys, need_weights=False)[0]
        return latents + self.fc2(squared_relu(self.fc1(self.norm_feed_forward(latents))))


class ExpertsResampler(nn.Module):
    """Blocks that refine learned latents; no norm behind them.

    Args:
        hidden_size: Width D.
        num_layers: Blocks.
        num_heads: Attention heads.
        num_latents: N.
    """

    def __init__(self, hidden_size: int, num_layers: int, num_heads: int, num_latents: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(num_latents, hidden_size) * hidden_size**-0.5)
        self.blocks = nn.ModuleList(ResamplerBlock(hidden_size, num_heads) for _ in range(num_layers))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """``(B, L, D) -> (B, N, D)``."""
        latents = self.latents.expand(len(tokens), -1, -1)
        for block in self.blocks:
            latents = block(latents, tokens)
        return latents
