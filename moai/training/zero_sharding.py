"""DeepSpeed ZeRO: configuration of its engine, gathering and sharding of its tensors.

DeepSpeed's public functions are used (https://deepspeed.readthedocs.io/en/latest/zero3.html) in place of its own
checkpoints, so that ours stay what they are elsewhere: safetensors of whole tensors, never pickled, readable on another
number of processes. AdamW's state before the first step alone has no public door; see :func:`_make_moments`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .train_settings import OptimizationSettings

__all__ = ["collect_zero_state", "configure_engine", "gather_parameter", "is_zero", "restore_zero_state"]

_MOMENTS = ("exp_avg", "exp_avg_sq")


def is_zero(accelerator: Accelerator) -> bool:
    """Whether DeepSpeed runs the processes."""
    return accelerator.distributed_type.value == "DEEPSPEED"


def configure_engine(accelerator: Accelerator, settings: OptimizationSettings, num_micro_batches: int) -> None:
    """Configure DeepSpeed's batch sizes, accumulation and clipping, before the model is prepared.

    Args:
        accelerator: Of this run.
        settings: The recipe's.
        num_micro_batches: Of one step on one process.
    """
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    config["train_micro_batch_size_per_gpu"] = settings.micro_batch_size
    config["gradient_accumulation_steps"] = num_micro_batches
    config["gradient_clipping"] = settings.clip_norm
    accelerator.gradient_accumulation_steps = num_micro_batches


def gather_parameter(parameter: torch.Tensor) -> torch.Tensor:
    """A parameter in ZeRO-3's pieces, whole, on the CPU. All ranks must call it.

    Args:
        parameter: Of a prepared model.
    """
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().to("cpu", copy=True).contiguous()


def collect_zero_state(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Float32 weights and moments; see :func:`moai.training.checkpoints.collect_state`. All ranks call it.

    Args:
        model: What is trained, without a wrapper around it.
        optimizer: DeepSpeed's, as accelerate returned it.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    step = _step_tensors(optimizer)
    weights, moments = {}, {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        weights[name] = safe_get_full_fp32_param(parameter).to("cpu", copy=True).contiguous()
        if not step:
            continue
        for moment in _MOMENTS:
            value = safe_get_full_optimizer_state(parameter, moment)
            moments[f"{name}.{moment}"] = value.to("cpu", copy=True).contiguous()
        moments[f"{name}.step"] = step[0].detach().to("cpu", copy=True)
    return weights, moments


def restore_zero_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    weights: Mapping[str, torch.Tensor],
    moments: Mapping[str, torch.Tensor],
) -> None:
    """Restore them; see :func:`moai.training.checkpoints.restore_state`. All ranks call it.

    Args:
        model: What is trained, without a wrapper around it.
        optimizer: DeepSpeed's, as accelerate returned it.
        weights: From a checkpoint.
        moments: Likewise.
    """
    import deepspeed
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    if moments:
        _make_moments(optimizer)
    step = None
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # Of what is computed with and of the optimizer's copy: DeepSpeed equals them after an optimizer step only.
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
            if torch.distributed.get_rank() == 0:
                parameter.copy_(weights[name])
        safe_set_local_fp32_param(parameter, _piece(weights[name], parameter))
        for moment in _MOMENTS:
            if f"{name}.{moment}" in moments:
                safe_set_local_optimizer_state(parameter, _piece(moments[f"{name}.{moment}"], parameter), moment)
                step = moments[f"{name}.step"]
    for tensor in _step_tensors(optimizer) if step is not None else ():
        tensor.copy_(step)  # ZeRO steps all parameters together


def _piece(whole: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """This rank's piece of a tensor, padded as DeepSpeed pads it.

    Its functions for whole tensors fail where the ranks do not divide the size (0.19).
    """
    size, rank = parameter.ds_tensor.numel(), torch.distributed.get_rank()
    missing = size * torch.distributed.get_world_size() - whole.numel()
    flat = nn.functional.pad(whole.flatten(), (0, missing))
    return flat[rank * size : (rank + 1) * size].to(parameter.device)


def _make_moments(optimizer: torch.optim.Optimizer) -> None:
    """Create the state of AdamW's first step: DeepSpeed can only fill existing state."""
    while hasattr(optimizer, "optimizer") and not hasattr(optimizer, "fp32_partitioned_groups_flat"):
        optimizer = optimizer.optimizer  # accelerate's wrapper, then ZeRO's
    for flat in optimizer.fp32_partitioned_groups_flat:
        state = optimizer.optimizer.state[flat]
        for moment in _MOMENTS:
            state.setdefault(moment, torch.zeros_like(flat))
        state.setdefault("step", torch.zeros((), dtype=torch.float32))


def _step_tensors(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """AdamW's step counters, one per flat piece."""
    while hasattr(optimizer, "optimizer"):  # accelerate's wrapper, ZeRO's, then AdamW
        optimizer = optimizer.optimizer
    return [state["step"] for state in optimizer.state.values() if isinstance(state.get("step"), torch.Tensor)]
