"""Operations and memory of a call, counted while it runs without numbers.

The model stands on torch's ``meta`` device, where floats have shapes and no values; whole numbers and flags are real,
so that code that looks at token ids, masks and lengths runs as it does with a loaded model. So any model is counted as
it is, adapters, idle experts and recomputed layers included.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Count", "WholeModel", "counting"]

_META = torch.device("meta")
_ATEN = torch.ops.aten
_PLAIN = F.scaled_dot_product_attention
#: Operators that take a tensor for its shape alone.
_LIKE = {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "new_empty", "empty_like"}


@dataclass
class Count:
    """What a call took; filled in by :func:`counting`.

    Attributes:
        flops: Floating-point operations of matrix products, convolutions and attention, which counts in full without
            the half that a causal kernel saves; a multiplication with its addition counts two.
        peak_bytes: Most bytes of tensors that were alive at one time, those that stood before the call left out.
    """

    flops: int = 0
    peak_bytes: int = 0


@contextmanager
def counting(model: nn.Module, inputs: Any = ()) -> Iterator[Count]:
    """Count what runs inside.

    Args:
        model: On the meta device; its own weights are no memory of the call.
        inputs: Tensors, nested as they please, that are none either.

    Yields:
        The counts, complete at the end of the block.
    """
    known = chain(model.parameters(), model.buffers(), tree_leaves(inputs))
    count, counter, shapes = Count(), FlopCounterMode(display=False), _ShapesOnly(known)
    counter.mod_tracker = WholeModel()
    # Not by the mode: activations that are recomputed in a backward pass do not see it.
    F.scaled_dot_product_attention = _attend
    try:
        with _Functions(), shapes, counter:
            yield count
    finally:
        F.scaled_dot_product_attention = _PLAIN
    count.flops, count.peak_bytes = counter.get_total_flops(), shapes.peak


class WholeModel(nullcontext):
    """In place of torch's module tracker, which stumbles over views of parameters made without gradients."""

    parents = ("Global",)


class _Functions(TorchFunctionMode):
    """Interpolation by one kernel; constants made of numbers stay numbers."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.interpolate and args[0].device == _META:
            with _disable_current_modes():
                size = func(args[0].detach(), *args[1:], **kwargs).shape
            return _Resized.apply(args[0], size)
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            made = func(*args, **(kwargs | {"device": "cpu"}))
            return made if not made.is_floating_point() else made.to(kwargs["device"])
        return func(*args, **kwargs)


class _Resized(torch.autograd.Function):
    """Interpolation by one kernel; the meta device would take it apart."""

    @staticmethod
    def forward(ctx: Any, image: torch.Tensor, size: torch.Size) -> torch.Tensor:
        ctx.size = image.shape
        return image.new_empty(size)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient.new_empty(ctx.size), None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """:func:`torch.nn.functional.scaled_dot_product_attention` by a fused kernel, as GPUs and CPUs have it."""
    if query.device != _META:
        return _PLAIN(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if enable_gqa and key.shape[-3] != query.shape[-3]:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (tensor.repeat_interleave(repeats, dim=-3) for tensor in (key, value))
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.empty(attn_mask.shape, dtype=query.dtype, device=_META)
        attn_mask = attn_mask.to(_META).expand(*query.shape[:-1], key.shape[-2])
    needs_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    return _ATEN._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, needs_gradient, dropout_p, is_causal, scale=scale
    )[0]


class _ShapesOnly(TorchDispatchMode):
    """Floats stay on the meta device, whole numbers and flags on the CPU; tensors that live are weighed.

    Attributes:
        peak: Most bytes that lived at one time.
    """

    def __init__(self, known: Iterable[Any]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen = {item.untyped_storage()._cdata for item in known if isinstance(item, torch.Tensor)}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = self._run(func, args, dict(kwargs or {}))
        tree_map(self._weigh, result)
        return result

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = func.overloadpacket.__name__
        leaves, tree = tree_flatten((args, kwargs))
        leaves = [_without_numbers(leaf) for leaf in leaves]  # the model's own buffers
        args, kwargs = tree_unflatten(leaves, tree)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if name in _LIKE:
            shape = torch.empty((), dtype=args[0].dtype).expand(args[0].shape)
            wanted = kwargs.get("dtype") or args[0].dtype
            device = _META if wanted.is_floating_point else torch.device("cpu")
            return func(shape.to(device), *args[1:], **(kwargs | {"device": device}))
        if name == "_to_copy" and not args[0].is_floating_point():
            wanted = kwargs.get("dtype") or args[0].dtype
            if not wanted.is_floating_point:
                return func(args[0], **(kwargs | {"device": torch.device("cpu")}))
        if name in ("_local_scalar_dense", "equal") and any(tensor.device == _META for tensor in tensors):
            return 0.0 if name == "_local_scalar_dense" else True
        is_meta = any(tensor.device == _META for tensor in tensors)
        if not tensors:
            made = func(*args, **kwargs)
            wants_numbers = isinstance(made, torch.Tensor) and made.device == _META and not made.is_floating_point()
            return func(*args, **(kwargs | {"device": torch.device("cpu")})) if wants_numbers else made
        if not is_meta:
            return func(*args, **kwargs)
        if name == "masked_select":
            size = int(torch.broadcast_to(args[1], torch.broadcast_shapes(args[0].shape, args[1].shape)).sum())
            return torch.empty(size, dtype=args[0].dtype, device=_META)
        if name in ("index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"):
            indices = [place for index in args[1] for place in _places(index)]
            args = (args[0], indices, *args[2:])
            leaves, tree = tree_flatten((args, kwargs))
        if tensors[0].device != _META and name.endswith("_") and not tensors[0].is_floating_point():
            return tensors[0]  # numbers that would come from numbers that are not there
        args, kwargs = tree_unflatten([_to_meta(leaf) for leaf in leaves], tree)
        return tree_map(_without_numbers, func(*args, **kwargs))

    def _weigh(self, value: Any) -> None:
        if not isinstance(value, torch.Tensor):
            return
        storage = value.untyped_storage()
        identity = storage._cdata
        if identity not in self._seen:
            self._seen.add(identity)
            size = storage.nbytes()
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, identity, size)

    def _forget(self, identity: int, size: int) -> None:
        self._seen.discard(identity)
        self.live -= size


def _places(index: torch.Tensor | None) -> list[torch.Tensor | None]:
    """A mask as whole numbers, one tensor per axis; other indices as they are."""
    if index is None or index.dtype not in (torch.bool, torch.uint8):
        return [index]
    return list(index.nonzero(as_tuple=True))


def _to_meta(leaf: Any) -> Any:
    if isinstance(leaf, torch.device):
        return leaf if leaf.type != "cpu" else _META
    return leaf.to(_META) if isinstance(leaf, torch.Tensor) else leaf


def _without_numbers(value: Any) -> Any:
    """Whole numbers and flags that follow from numbers that are not there: 0."""
    if (
        isinstance(value, torch.Tensor)
        and value.device == _META
        and not (value.is_floating_point() or value.is_complex())
    ):
        return torch.zeros(value.shape, dtype=value.dtype)
    return value
