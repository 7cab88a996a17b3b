"""Perceiver compressor of the release: a resampler without positions."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_compressor import CompressorConfig
from .feed_forward import FeedForward


class PerceiverAttention(nn.Module):
    """Latents attend to [auxiliary tokens; latents].

    Args:
        config: Widths.
    """

    def __init__(self, config: CompressorConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.norm_auxiliary = nn.LayerNorm(config.hidden_size)
        self.norm_latents = nn.LayerNorm(config.hidden_size)
        self.to_query = nn.Linear(config.hidden_size, config.inner_size, bias=False)
        self.to_key_value = nn.Linear(config.hidden_size, 2 * config.inner_size, bias=False)
        self.to_output = nn.Linear(config.inner_size, config.hidden_size, bias=False)

    def forward(self, auxiliary: torch.Tensor, latents: torch.Tensor, key_mask: torch.Tensor | None) -> torch.Tensor:
        """Return the update ``(B, N, D)`` of the latents; ``key_mask`` is ``(B, A + N)`` bool or None."""
        latents = self.norm_latents(latents)
        source = torch.cat([self.norm_auxiliary(auxiliary), latents], dim=1)  # (B, A + N, D)
        key, value = self.to_key_value(source).chunk(2, dim=-1)
        query, key, value = (
            states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for states in (self.to_query(latents), key, value)
        )  # (B, H, ..., head_dim)
        mask = None if key_mask is None else key_mask[:, None, None, :]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.to_output(attended.transpose(1, 2).flatten(2))


class PerceiverLayer(nn.Module):
    """Attention and feed-forward, each with a residual on the latents.

    Args:
        config: Widths.
    """

    def __init__(self, config: CompressorConfig) -> None:
        super().__init__()
        self.attention = PerceiverAttention(config)
        self.feed_forward = FeedForward(config)

    def forward(self, auxiliary: torch.Tensor, latents: torch.Tensor, key_mask: torch.Tensor | None) -> torch.Tensor:
        """Update the latents ``(B, N, D)``."""
        latents = latents + self.attention(auxiliary, latents, key_mask)
        return latents + self.feed_forward(latents)


class PerceiverStack(nn.Module):
    """All layers. Permuting the auxiliary tokens does not change the result.

    Args:
        config: Widths and depth.
    """

    def __init__(self, config: CompressorConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PerceiverLayer(config) for _ in range(config.num_layers))

    def forward(
        self,
        latents: torch.Tensor,
        text: torch.Tensor,
        text_mask: torch.Tensor | None,
        patches: torch.Tensor | None,
        patch_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See :meth:`.Compressor.forward`; ``latents`` is ``(B, N, D)``, ``patch_mask`` ``(B, P)``."""
        auxiliary = text if patches is None else torch.cat([text, patches], dim=1)  # (B, A, D)
        key_mask = None
        if text_mask is not None or patch_mask is not None:
            num_words, size = text.shape[1], (text.shape[0], auxiliary.shape[1] + latents.shape[1])
            key_mask = torch.ones(size, dtype=torch.bool, device=text.device)
            if text_mask is not None:
                key_mask[:, :num_words] = text_mask
            if patch_mask is not None:
                key_mask[:, num_words : auxiliary.shape[1]] = patch_mask
        for layer in self.layers:
            latents = layer(auxiliary, latents, key_mask)
        return latents
