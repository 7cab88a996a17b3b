"""Positions of tokens in padded rows."""

from __future__ import annotations

import torch

__all__ = ["number_tokens"]


def number_tokens(attention_mask: torch.Tensor, length: int) -> torch.Tensor:
    """Position ids of the last ``length`` tokens; padding before a token does not count, padding behind goes on.

    Args:
        attention_mask: ``(B, past + length)`` 1 = a token; padding stands at the left, at the right, or behind learned
            tokens (PEFT).
        length: Tokens of this pass.

    Returns:
        ``(B, length)`` int64.
    """
    keep = attention_mask.long()
    num_left = ((1 - keep).cumsum(dim=1) * keep).cummax(dim=1).values
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (positions - num_left)[:, -length:]
