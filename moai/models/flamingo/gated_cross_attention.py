"""GATED XATTN-DENSE: text attends to images, through gates that begin closed.

Paper: section 2.2 and figure 4; section 2.3 on which image a token sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_flamingo import FlamingoConfig
from .feed_forward import FeedForward

__all__ = ["GatedCrossAttentionBlock", "MaskedCrossAttention", "Media", "count_media"]


def count_media(input_ids: torch.Tensor, image_token_id: int) -> torch.Tensor:
    """How many images stand before or at each token: its image's number, 0 = none yet. ``(B, L) -> (B, L)`` int64."""
    return (input_ids == image_token_id).cumsum(dim=-1)


@dataclass
class Media:
    """Images of a pass, and which of them each token sees.

    Attributes:
        states: ``(B, T, N, V)`` resampled images.
        is_visible: ``(B, L, T)`` bool: the token sees the image. None = every token sees all.
        is_looking: ``(B, L, 1)`` bool: False = the token takes nothing from images. None = all do.
        is_padding: ``(B, 1, T)`` bool: in place of an image, in a row that has others. None = nowhere.
    """

    states: torch.Tensor
    is_visible: torch.Tensor | None = None
    is_looking: torch.Tensor | None = None
    is_padding: torch.Tensor | None = None

    @classmethod
    def from_times(
        cls,
        states: torch.Tensor,
        times: torch.Tensor,
        only_immediate: bool = True,
        media_mask: torch.Tensor | None = None,
    ) -> Media:
        """Images that tokens see by their places.

        Args:
            states: ``(B, T, N, V)`` resampled images.
            times: ``(B, L)`` number of images before or at each token, see :func:`count_media`.
            only_immediate: A token sees its image only, and nothing where it has none. False: all images before it,
                and where there are none before it, every image, all its tokens alike: so the released code.
            media_mask: ``(B, T)`` bool, False = padding in place of an image; None = all are images.
        """
        numbers = torch.arange(1, states.shape[1] + 1, device=times.device)  # (T,)
        if only_immediate:
            is_visible = times[..., None] == numbers
            is_looking = times[..., None] > 0
        else:
            is_visible = times[..., None] >= numbers
            is_looking = None
        is_padding = None
        if media_mask is not None:
            is_real = media_mask.bool()[:, None]  # (B, 1, T)
            has_media = is_real.any(dim=-1, keepdim=True)
            is_padding = ~is_real & has_media
            is_looking = has_media if is_looking is None else is_looking & has_media
        return cls(states, is_visible, is_looking, is_padding)


class MaskedCrossAttention(nn.Module):
    """Attention of text to images; no biases, images not normed.

    Args:
        width: D, of the text.
        media_width: V, of the images' tokens.
        num_heads: Heads.
        head_dim: Their width.
    """

    def __init__(self, width: int, media_width: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        inner = num_heads * head_dim
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(media_width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, hidden_states: torch.Tensor, media: Media) -> torch.Tensor:
        """What text takes from images.

        Args:
            hidden_states: ``(B, L, D)``.
            media: T images of N tokens.

        Returns:
            ``(B, L, D)``; zeros at tokens that do not look.
        """
        num_latents = media.states.shape[2]
        queries = self.to_q(self.norm(hidden_states))
        keys, values = self.to_kv(media.states.flatten(1, 2)).chunk(2, dim=-1)  # (B, T * N, inner) each
        queries, keys, values = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (queries, keys, values))
        bias = None
        if media.is_visible is not None:
            # A finite bias: what sees no image attends to all of them alike, where -inf would give NaN.
            bias = torch.zeros_like(media.is_visible, dtype=queries.dtype)
            bias = bias.masked_fill(~media.is_visible, torch.finfo(queries.dtype).min)
            if media.is_padding is not None:
                bias = bias.masked_fill(media.is_padding, float("-inf"))
            bias = bias.repeat_interleave(num_latents, dim=-1)[:, None]  # (B, 1, L, T * N)
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)  # (B, heads, L, head_dim)
        taken = self.to_out(attended.transpose(1, 2).flatten(2))
        return taken if media.is_looking is None else taken * media.is_looking


class GatedCrossAttentionBlock(nn.Module):
    """Cross-attention and feed-forward layer in front of a decoder layer; a new block is the identity.

    Args:
        config: Sizes.
    """

    def __init__(self, config: FlamingoConfig) -> None:
        super().__init__()
        width = config.text_config.hidden_size
        self.attention = MaskedCrossAttention(
            width, config.vision_config.hidden_size, config.cross_attention_num_heads, config.cross_attention_head_dim
        )
        self.feed_forward = FeedForward(width, config.cross_attention_mult, config.hidden_act)
        self.attention_gate = nn.Parameter(torch.zeros(1))
        self.feed_forward_gate = nn.Parameter(torch.zeros(1))

    def forward(self, hidden_states: torch.Tensor, media: Media | None) -> torch.Tensor:
        """``(B, L, D) -> (B, L, D)``; without media, text goes through the feed-forward layer alone."""
        if media is not None:
            hidden_states = hidden_states + self.attention_gate.tanh() * self.attention(hidden_states, media)
        return hidden_states + self.feed_forward_gate.tanh() * self.feed_forward(hidden_states)
