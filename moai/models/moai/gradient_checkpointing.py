"""Activation checkpointing: recompute a layer in the backward pass instead of keeping what it computed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any


def without_reentrance(checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Give a checkpointing function its non-reentrant form, the only one that a mixture can be trained with.

    The reentrant form sees gradients of positional tensors only. Every layer takes the compressed auxiliary tokens
    inside a keyword, so each recomputation would walk back through the same compressor, whose graph is gone after the
    first; callers that name no form (``peft.prepare_model_for_kbit_training``) would get it by torch's default.

    Args:
        checkpoint: :func:`torch.utils.checkpoint.checkpoint` as transformers hands it out: bound to its arguments.

    Returns:
        The same function, with ``use_reentrant=False``.
    """
    if getattr(checkpoint, "keywords", {}).get("use_reentrant", True):
        warnings.warn(
            "MoAI is checkpointed with `use_reentrant=False`: the reentrant form would lose the gradients of the "
            'auxiliary tokens. Pass {"use_reentrant": False} to silence this.',
            stacklevel=2,
        )
    return partial(checkpoint, use_reentrant=False)


__all__ = ["without_reentrance"]
