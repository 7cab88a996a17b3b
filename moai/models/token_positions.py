"""Positions of tokens in rows that are padded on the left."""

from __future__ import annotations

import torch

__all__ = ["number_tokens"]


def number_tokens(attention_mask: torch.Tensor) -> torch.Tensor:
    """Positions from a row's first token on; 0 on padding at its left.

    Args:
        attention_mask: ``(B, L)`` 1 = a token.

    Returns:
        ``(B, L)`` int64.
    """
    num_left = (attention_mask.long().cumsum(dim=1) == 0).sum(dim=1, keepdim=True)
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (positions - num_left).clamp_min(0)
