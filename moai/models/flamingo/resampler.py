"""Perceiver resampler: the patches of an image, or of a video's frames, to a fixed number of tokens.

Paper: section 2.1 and figure 5. The released code has no learned embeddings of time by default, and GELU.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_flamingo import FlamingoConfig
from .feed_forward import FeedForward

__all__ = ["PerceiverAttention", "PerceiverResampler"]


class PerceiverAttention(nn.Module):
    """Attention of latents to patches and to themselves; no biases.

    Args:
        width: Of patches and latents.
        num_heads: Heads.
        head_dim: Their width.
    """

    def __init__(self, width: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        inner = num_heads * head_dim
        self.num_heads = num_heads
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, patches: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Update of the latents.

        Args:
            patches: ``(M, P, V)``.
            latents: ``(M, N, V)``.

        Returns:
            ``(M, N, V)``.
        """
        patches, latents = self.norm_media(patches), self.norm_latents(latents)
        queries = self.to_q(latents)
        keys, values = self.to_kv(torch.cat([patches, latents], dim=1)).chunk(2, dim=-1)  # (M, P + N, inner) each
        queries, keys, values = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (queries, keys, values))
        attended = F.scaled_dot_product_attention(queries, keys, values)  # (M, heads, N, head_dim)
        return self.to_out(attended.transpose(1, 2).flatten(2))


class PerceiverLayer(nn.Module):
    """Attention and feed-forward layer, each added to the latents.

    Args:
        config: Sizes.
    """

    def __init__(self, config: FlamingoConfig) -> None:
        super().__init__()
        width = config.vision_config.hidden_size
        self.attention = PerceiverAttention(width, config.resampler_num_heads, config.resampler_head_dim)
        self.feed_forward = FeedForward(width, config.resampler_mult, config.hidden_act)

    def forward(self, patches: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """``(M, P, V)`` patches and ``(M, N, V)`` latents to new latents."""
        latents = latents + self.attention(patches, latents)
        return latents + self.feed_forward(latents)


class PerceiverResampler(nn.Module):
    """Learned latents that attend to an image's patches; each image for itself.

    Args:
        config: Sizes.
    """

    def __init__(self, config: FlamingoConfig) -> None:
        super().__init__()
        width = config.vision_config.hidden_size
        self.latents = nn.Parameter(torch.empty(config.num_latents, width))
        self.frame_embs = self.media_time_embs = None
        if config.max_num_frames is not None:
            self.frame_embs = nn.Parameter(torch.empty(config.max_num_frames, width))
        if config.max_num_media is not None:
            self.media_time_embs = nn.Parameter(torch.empty(config.max_num_media, 1, width))
        self.layers = nn.ModuleList(PerceiverLayer(config) for _ in range(config.resampler_depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Resample.

        Args:
            features: ``(B, T, F, P, V)``: T images or videos of F frames of P patches.

        Returns:
            ``(B, T, N, V)``.

        Raises:
            ValueError: There are more frames or images than learned embeddings of their places.
        """
        batch, num_media, num_frames, _, width = features.shape
        if self.frame_embs is not None:
            _check_places("frames", num_frames, self.frame_embs, "max_num_frames")
            features = features + self.frame_embs[:num_frames, None]
        features = features.flatten(2, 3)  # (B, T, F * P, V)
        if self.media_time_embs is not None:
            _check_places("images in a row", num_media, self.media_time_embs, "max_num_media")
            features = features + self.media_time_embs[:num_media]
        patches = features.flatten(0, 1)  # (B * T, F * P, V)
        latents = self.latents.expand(batch * num_media, -1, -1)
        for layer in self.layers:
            latents = layer(patches, latents)
        return self.norm(latents).view(batch, num_media, -1, width)


def _check_places(what: str, number: int, table: torch.Tensor, field: str) -> None:
    if number > len(table):
        raise ValueError(f"expected at most {len(table)} {what} (`{field}`), got {number}. Give fewer.")
