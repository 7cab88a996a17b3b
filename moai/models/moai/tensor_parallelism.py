"""Partial LoRA under tensor parallelism: each update is sharded like the linear beside it.

transformers cuts the linears that a decoder's plan names, column- or rowwise. A wrapped linear is cut as before under
its new name. Of its update's two factors one is cut in the same way; the other, and the few numbers that pass between
them, are whole in every process. Mixers, compressor, projector and vision tower are whole in every process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.distributed.tensor_parallel import (
    ALL_PARALLEL_STYLES,
    AllReduceParallel,
    ColwiseParallel,
    RowwiseParallel,
    TensorParallelLayer,
)

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class _SumGradient(TensorParallelLayer):
    """Sum of the gradient's shares, for a module whose output is whole on every process."""

    def transform_output_post_forward(self, module: nn.Module, output: Any, mesh: DeviceMesh) -> torch.Tensor:
        from torch.distributed.tensor import DTensor, Partial, Replicate

        whole = DTensor.from_local(output, mesh, [Replicate()], run_check=False)
        return whole.to_local(grad_placements=[Partial()])


class PartialLoraParallel(TensorParallelLayer):
    """Style of a :class:`moai.models.moai.partial_lora.LowRankUpdate`.

    Args:
        factor: Name of the factor that is cut.
        cut: Style of the linear beside it, which says how.
        between: Style of what passes between the factors.
    """

    def __init__(self, factor: str, cut: TensorParallelLayer, between: TensorParallelLayer) -> None:
        self.factor, self.cut, self.between = factor, cut, between

    def should_use_local_tensors(self, module: nn.Module) -> bool:
        """The update multiplies each process's own piece."""
        return True

    def shard_param(self, module: nn.Module, param: str, mesh: DeviceMesh) -> None:
        """Cut one of the factors."""
        if param == self.factor:
            self.cut.shard_param(module, param, mesh)

    def install_forward(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        """Add the one collective: backward where the output is cut, forward where the input is."""
        self.between.install_forward(module.between, mesh)
        return super().install_forward(module, mesh)


UPDATE_STYLES = {"colwise": "partial_lora_colwise", "rowwise": "partial_lora_rowwise"}
if torch.distributed.is_available():  # as transformers registers its own
    for name, style in (
        ("partial_lora_colwise", PartialLoraParallel("lora_b", ColwiseParallel(), _SumGradient())),
        ("partial_lora_rowwise", PartialLoraParallel("lora_a", RowwiseParallel(), AllReduceParallel())),
    ):
        ALL_PARALLEL_STYLES.register(name, style)


def plan_partial_lora(plan: dict[str, str], wrapped: set[str]) -> dict[str, str]:
    """Rename the rules of wrapped linears and add their updates'.

    Args:
        plan: A decoder's tensor parallel plan, for example ``{"layers.*.self_attn.q_proj": "colwise"}``.
        wrapped: Names of the linears that carry an update, layer numbers as ``*``.

    Returns:
        A new plan. An update beside a linear of another style (whole input, whole output) is whole.
    """
    planned = {}
    for name, style in plan.items():
        if name not in wrapped:
            planned[name] = style
            continue
        planned[f"{name}.base_layer"] = style
        if style in UPDATE_STYLES:
            planned[f"{name}.update"] = UPDATE_STYLES[style]
    return planned


__all__ = ["PartialLoraParallel", "plan_partial_lora"]
