"""Partial LoRA: a low-rank update of the decoder's linears at image positions only.

Source: InternLM-XComposer2, arXiv 2401.16420, section 3.2; the released MoAI builds on that decoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils.output_capturing import CompileableContextVar

from .tensor_parallelism import plan_partial_lora

TARGET_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# Linears are called as `self.q_proj(x)` by code that is not ours: the positions reach them through this variable, set
# by the decoder layer around its own forward, inside whatever gradient checkpointing recomputes. torch.compile cannot
# trace a ContextVar; transformers' wrapper stands in for it there.
_image_positions = CompileableContextVar("image_positions")


@contextmanager
def image_positions_scope(positions: torch.Tensor | None) -> Iterator[None]:
    """Context in which the partial LoRA linears know the image positions.

    Args:
        positions: ``(B, L)`` bool, or None for no image at all (every decoding step).
    """
    token = _image_positions.set(positions)
    try:
        yield
    finally:
        _image_positions.reset(token)


class LowRankUpdate(nn.Module):
    """B A of a linear; direct parameters, so that quantisers leave them in compute dtype.

    Args:
        in_features: Input width.
        out_features: Output width.
        rank: Inner width.
    """

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        self.lora_a = nn.Parameter(torch.empty(rank, in_features))
        self.lora_b = nn.Parameter(torch.zeros(out_features, rank))
        self.between = nn.Identity()  # where tensor parallelism makes the narrow states whole
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A random, B zero: a new update changes nothing."""
        nn.init.normal_(self.lora_a, std=self.lora_a.shape[1] ** -0.5)
        nn.init.zeros_(self.lora_b)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map ``(..., in_features)`` to ``(..., out_features)``."""
        return F.linear(self.between(F.linear(inputs.to(self.lora_a.dtype), self.lora_a)), self.lora_b)


class PartialLoraLinear(nn.Module):
    """A linear layer plus its low-rank update where the input is an image token.

    It wraps a plain ``nn.Linear`` rather than subclassing it: bitsandbytes quantises ``base_layer``.

    Args:
        base_layer: The decoder's linear.
        rank: Inner width of the update.
        alpha: The update is multiplied by ``alpha / rank``.
    """

    def __init__(self, base_layer: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.update = LowRankUpdate(base_layer.in_features, base_layer.out_features, rank)
        self.scaling = alpha / rank

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map ``(B, L, in_features)`` to ``(B, L, out_features)``."""
        outputs = self.base_layer(inputs)
        positions = _image_positions.get()
        if positions is None:
            return outputs
        update = self.update(inputs) * self.scaling
        return outputs + torch.where(positions[..., None], update, 0).to(outputs.dtype)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> PartialLoraLinear:
        """Remove PEFT's adapter from ``base_layer``; the partial LoRA update stays.

        PEFT takes whatever has a ``base_layer`` for an adapter of its own and would throw the update away; a module
        with this method it asks instead.

        Args:
            merge: Add the adapter to the weights; False drops it.
            safe_merge: Refuse to merge adapters that hold NaN.
            adapter_names: Adapters to merge; None = the active ones.

        Returns:
            This module.
        """
        adapted = self.base_layer
        if hasattr(adapted, "get_base_layer"):
            if merge:
                adapted.merge(safe_merge=safe_merge, adapter_names=adapter_names)
            self.base_layer = adapted.get_base_layer()
        return self


def insert_partial_lora(decoder: nn.Module, rank: int, alpha: float) -> None:
    """Wrap every attention and feed-forward linear of the decoder's layers, in place.

    Args:
        decoder: A Hugging Face decoder with ``layers[i].self_attn`` and ``.mlp``.
        rank: Inner width of each update.
        alpha: Scale numerator.
    """
    wrapped = set()
    for layer in decoder.layers:
        for block in ("self_attn", "mlp"):
            for name in TARGET_LINEARS:
                linear = getattr(getattr(layer, block), name, None)
                if isinstance(linear, nn.Linear):
                    setattr(getattr(layer, block), name, PartialLoraLinear(linear, rank, alpha))
                    wrapped.add(f"layers.*.{block}.{name}")
    decoder.tp_plan = plan_partial_lora(decoder.tp_plan, wrapped)
