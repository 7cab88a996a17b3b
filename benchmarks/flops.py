"""Floating-point operations of one call, counted while it runs: matrix products and attention.

torch's counter knows the attention kernels of GPUs only; here it learns the CPU's, and that a causal kernel skips the
pairs of tokens that may not see each other. Element-wise work (norms, activations, rotary turns) is not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

_KERNELS = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
_OPERATORS = tuple(
    getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}{suffix}")
    for kernel in _KERNELS
    for suffix in ("", "_backward")
)


@dataclass(frozen=True)
class FlopCount:
    """Operations of one call; a multiplication with its addition counts two.

    Attributes:
        products: Of linear layers.
        attention: Of attention, scores and their sums; a causal kernel's over the pairs it may see.
        attention_in_full: The same with the pairs that causal kernels skip, as most published counts have it.
    """

    products: int
    attention: int
    attention_in_full: int

    @property
    def total(self) -> int:
        """Operations that are carried out."""
        return self.products + self.attention

    @property
    def total_in_full(self) -> int:
        """Operations if every token attended to every other."""
        return self.products + self.attention_in_full


class _WholeModel(nullcontext):
    """In place of torch's module tracker, which stumbles over views of parameters made without gradients."""

    parents = ("Global",)


def count_flops(call: Callable[[], Any]) -> FlopCount:
    """Run a call once and count.

    Args:
        call: What to count; autograd's backward pass inside it counts as well.

    Returns:
        The counts. Batched products (``bmm``), which spelled-out attention is made of, count as attention.
    """
    skipped: list[int] = []
    counter = FlopCounterMode(
        display=False, custom_mapping={operator: _attention_formula(operator, skipped) for operator in _OPERATORS}
    )
    counter.mod_tracker = _WholeModel()
    with counter:
        call()
    counts = counter.get_flop_counts().get("Global", {})
    in_attention = {*_OPERATORS, torch.ops.aten.bmm, torch.ops.aten.baddbmm}
    in_full = sum(count for operator, count in counts.items() if operator in in_attention)
    return FlopCount(counter.get_total_flops() - in_full, in_full - sum(skipped), in_full)


def _attention_formula(operator: Any, skipped: list[int]) -> Callable[..., int]:
    """Count an attention kernel in full; note in ``skipped`` what it leaves out when it is causal."""
    names = [argument.name for argument in operator.default._schema.arguments]

    def formula(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        given = dict(zip(names, args, strict=False)) | kwargs
        query, key, value = (given[name].shape for name in ("query", "key", "value"))
        if names[0].startswith("grad_out"):
            full = sdpa_backward_flop_count(given[names[0]].shape, query, key, value)
        else:
            full = sdpa_flop_count(query, key, value)
        if given.get("is_causal"):
            num_queries, num_keys = query[-2], key[-2]
            seen = sum(min(index + 1, num_keys) for index in range(num_queries))  # torch aligns at the upper left
            skipped.append(full - full * seen // (num_queries * num_keys))
        return full

    formula._get_raw = True  # torch's mark for a formula that wants tensors, not shapes
    return formula
