"""Which of torch's attention kernels a training step on CPUs takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["short_rows_plainly"]

#: Forward and backward pass together: plain products take 0.3 to 0.9 of the fused kernel's time up to here, and 1.0
#: to 2.4 of it from 256 keys on (`python -m benchmarks.attention`).
_MOST_KEYS = 160


@contextlib.contextmanager
def short_rows_plainly() -> Iterator[None]:
    """Within it, bfloat16 attention over few keys is two matrix products and a softmax.

    The backward pass of torch's fused kernel for CPUs is slow in bfloat16 where rows are short; in float32, and where
    they are long, the fused kernel is the faster one, and holds no ``(B, heads, L, L)``.
    """
    attend = F.scaled_dot_product_attention

    def choose(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        is_half = key.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
        if not (is_half and key.shape[-2] <= _MOST_KEYS):
            return attend(query, key, *args, **kwargs)
        with sdpa_kernel(SDPBackend.MATH):
            return attend(query, key, *args, **kwargs)

    # Not a TorchFunctionMode: those are off in the backward pass, which computes anew what was not kept.
    F.scaled_dot_product_attention = choose
    try:
        yield
    finally:
        F.scaled_dot_product_attention = attend
