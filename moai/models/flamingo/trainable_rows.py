"""Rows of an embedding that are trained while all others stay frozen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

__all__ = ["TrainableRows", "keep_gradients_of_rows"]


class TrainableRows:
    """Hook of an embedding's gradient.

    Args:
        handle: Its handle.
    """

    def __init__(self, handle: RemovableHandle) -> None:
        self._handle = handle

    def remove(self) -> None:
        """Let all rows learn."""
        self._handle.remove()


def keep_gradients_of_rows(embedding: nn.Module, rows: Sequence[int]) -> TrainableRows:
    """Make an embedding learn in some rows only.

    Args:
        embedding: Has a ``weight`` ``(vocab_size, D)``, which gets ``requires_grad``; a tied output head's gradient
            counts with it.
        rows: Ids that learn; the others' gradients become zero.
    """
    weight = embedding.weight.requires_grad_(True)

    def keep(gradient: torch.Tensor) -> torch.Tensor:
        kept = torch.zeros_like(gradient)
        kept[list(rows)] = gradient[list(rows)]
        return kept

    return TrainableRows(weight.register_hook(keep))
