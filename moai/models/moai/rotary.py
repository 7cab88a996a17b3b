"""Stateless dynamic (NTK) rotary positions: every row of every call gets the frequencies of its own length.

transformers' implementation keeps the frequencies of the longest prompt seen so far until one shorter than
``max_position_embeddings`` arrives, and stretches a whole batch by its longest row. A prompt then reads differently
after another one, or beside another one. The released MoAI (InternLM2's code) remembers in the same way; on its first
prompt it computes exactly what stands here.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from ..derived_classes import derive_class


def dynamic_ntk_frequencies(
    lengths: torch.Tensor, *, theta: float, factor: float, max_position_embeddings: int, head_dim: int
) -> torch.Tensor:
    """Inverse frequencies of dynamic NTK scaling (reddit.com/r/LocalLLaMA/comments/14mrgpr; InternLM2's default).

    Args:
        lengths: ``(B,)`` sequence lengths, past tokens included.
        theta: Base of unscaled rotary positions.
        factor: Scaling factor, at least 1.
        max_position_embeddings: Lengths up to this one are not scaled.
        head_dim: Width of a head.

    Returns:
        ``(B, head_dim / 2)`` float32.
    """
    lengths = lengths.float().clamp_min(max_position_embeddings)
    stretch = factor * lengths / max_position_embeddings - (factor - 1)
    base = theta * stretch ** (head_dim / (head_dim - 2))  # (B,)
    exponents = torch.arange(0, head_dim, 2, device=lengths.device).float() / head_dim
    return 1.0 / base[:, None] ** exponents


@cache
def stateless_dynamic_class(rotary_class: type[nn.Module]) -> type[nn.Module]:
    """Subclass a decoder's rotary embedding so that it keeps no state between calls."""

    @torch.no_grad()
    def forward(self: nn.Module, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rope = self.config.rope_parameters
        inv_freq = dynamic_ntk_frequencies(
            position_ids.amax(dim=-1) + 1,
            theta=rope["rope_theta"],
            factor=rope["factor"],
            max_position_embeddings=self.config.max_position_embeddings,
            head_dim=2 * self.inv_freq.shape[-1],
        )
        angles = position_ids[..., None].float() * inv_freq[:, None]  # (B, L, head_dim / 2)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)

    return derive_class(rotary_class, stateless_dynamic_class, forward=forward, __module__=__name__)


def make_rotary_stateless(decoder: nn.Module) -> None:
    """Make dynamic rotary positions stateless, in place; other decoders stay as they are.

    Args:
        decoder: A Hugging Face decoder with ``rotary_emb``.
    """
    rotary = getattr(decoder, "rotary_emb", None)
    if getattr(rotary, "rope_type", None) == "dynamic":
        rotary.__class__ = stateless_dynamic_class(type(rotary))
