"""Training state on disk: whole or not at all, checked by checksums, never pickled.

A checkpoint holds what training changes: trained parameters, the optimizers' moments, running statistics, and what the
task keeps beside its model. Everything else is a function of the recipe, and random numbers and the data's order are
functions of seed and step.
"""

from __future__ import annotations

import errno
import json
import shutil
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from verbalizers.core.durable_files import atomic_folder

__all__ = [
    "CheckpointError",
    "collect_state",
    "find_newest_checkpoint",
    "read_checkpoint",
    "restore_extra_state",
    "restore_state",
    "running_statistics",
    "trained_tensors",
    "whole_tensor",
    "write_checkpoint",
]

FORMAT = 1
_STATE = "state.json"
_EXTRA = "extra.safetensors"

#: One optimizer, or several that share the parameters among them.
Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read or used here."""


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU; one that FSDP has spread over ranks is put together. All ranks must call it.

    Args:
        tensor: Any tensor.
    """
    if hasattr(tensor, "ds_id"):  # in DeepSpeed ZeRO-3's pieces
        from .zero_sharding import gather_parameter

        return gather_parameter(tensor)
    tensor = tensor.detach()
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.to("cpu", copy=True).contiguous()


def _spread(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``whole`` on the device and in the pieces of ``like``.

    Always a copy: memory mapped from a file may lie unaligned, and kernels round unaligned tensors otherwise.
    """
    whole = whole.to(like.device, copy=True)
    return distribute_tensor(whole, like.device_mesh, like.placements) if isinstance(like, DTensor) else whole


def collect_state(model: nn.Module, optimizer: Optimizers) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Trained parameters with running statistics, and the optimizers' moments. All ranks must call it.

    Args:
        model: What is trained, without a distributed wrapper around it.
        optimizer: Over its trained parameters.

    Returns:
        Weights by parameter name; moments by ``<parameter name>.<moment>``.
    """
    weights = {name: whole_tensor(value) for name, value in trained_tensors(model).items()}
    owners = _owners(optimizer)
    moments = {}
    for name, parameter in model.named_parameters():
        for moment, value in owners[parameter].state.get(parameter, {}).items() if parameter in owners else ():
            moments[f"{name}.{moment}"] = whole_tensor(value)
    return weights, moments


def _owners(optimizers: Optimizers) -> dict[torch.Tensor, torch.optim.Optimizer]:
    """Parameter -> the optimizer that updates it."""
    each = optimizers if isinstance(optimizers, Sequence) else [optimizers]
    return {parameter: one for one in each for group in one.param_groups for parameter in group["params"]}


def trained_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters with a gradient and running statistics, by name: what training changes.

    Args:
        model: What is trained, without a distributed wrapper around it.
    """
    return {n: p for n, p in model.named_parameters() if p.requires_grad} | running_statistics(model)


def running_statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers that a forward pass changes, by name.

    Args:
        model: In training mode, but for frozen modules.
    """
    return {
        f"{prefix}.{name}": buffer
        for prefix, module in model.named_modules()
        if module.training and isinstance(module, nn.modules.batchnorm._BatchNorm)
        for name, buffer in module.named_buffers(recurse=False)
    }


@torch.no_grad()
def restore_state(
    model: nn.Module,
    optimizer: Optimizers,
    weights: Mapping[str, torch.Tensor],
    moments: Mapping[str, torch.Tensor],
) -> None:
    """Put a checkpoint's tensors back.

    Args:
        model: As in :func:`collect_state`.
        optimizer: Likewise; it has made no step yet.
        weights: From :func:`read_checkpoint`.
        moments: Likewise.

    Raises:
        CheckpointError: They belong to another model.
    """
    _copy_into(trained_tensors(model), weights)
    found: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)  # none for an expert that was not drawn yet
    for key, value in moments.items():
        name, _, moment = key.rpartition(".")
        found[name][moment] = value
    parameters, owners = dict(model.named_parameters()), _owners(optimizer)
    for name, values in found.items():
        parameter = parameters[name]
        owners[parameter].state[parameter] = {
            moment: value.clone() if value.dim() == 0 else _spread(value, parameter) for moment, value in values.items()
        }


@torch.no_grad()
def restore_extra_state(extra: Mapping[str, torch.Tensor], path: Path) -> None:
    """Put back what a task keeps beside its model.

    Args:
        extra: Its tensors, see :meth:`moai.training.task.Task.extra_state`.
        path: Folder of a checkpoint.

    Raises:
        CheckpointError: It cannot be read, or belongs to another task.
    """
    file = path / _EXTRA
    try:
        found = load_file(file) if file.is_file() else {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}. Remove {path} to use the one before.") from error
    _copy_into(extra, found)


def _copy_into(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> None:
    """Copy a checkpoint's tensors into those of the same names; all must be there and alike."""
    for name in sorted(set(found) | set(expected)):
        got, want = found.get(name), expected.get(name)
        if got is None or want is None or got.shape != want.shape:
            shapes = [None if tensor is None else tuple(tensor.shape) for tensor in (want, got)]
            raise CheckpointError(
                f"expected a checkpoint of this model, but {name!r} has shape {shapes[1]} there and {shapes[0]} here "
                "(None = absent). Choose another `output_folder`, or the settings the run was started with."
            )
        want.copy_(_spread(got, want))


def write_checkpoint(
    folder: Path,
    step: int,
    weights: Mapping[str, torch.Tensor],
    moments: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    keep: int = 2,
    extra: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write a checkpoint beside the others, then remove the oldest. One rank calls it.

    It is written under another name, flushed to the disk, and renamed: a kill at any moment leaves it whole or absent.

    Args:
        folder: Folder of checkpoints.
        step: Steps done.
        weights: From :func:`collect_state`.
        moments: Likewise.
        state: JSON-able values to keep.
        keep: Checkpoints that stay.
        extra: What the task keeps beside its model, on the CPU.

    Returns:
        The new checkpoint's folder.

    Raises:
        CheckpointError: The disk is full or cannot be written to; earlier checkpoints stay.
    """
    final = folder / f"step-{step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".step-*"):  # of runs that were killed while writing
            shutil.rmtree(leftover, ignore_errors=True)
        with atomic_folder(final, force=True) as temporary:
            sums = {}
            files = {"model.safetensors": weights, "optimizer.safetensors": moments}
            if extra:
                files[_EXTRA] = extra
            for name, tensors in files.items():
                save_file(dict(tensors), temporary / name)
                sums[name] = _checksum(temporary / name)
            content = {"format": FORMAT, "step": step, "files": sums, **state}
            (temporary / _STATE).write_text(json.dumps(content, indent=1), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise _writing_failed(folder, step, (weights, moments, extra or {}), error) from error
    for old in _list_checkpoints(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _writing_failed(
    folder: Path,
    step: int,
    groups: Sequence[Mapping[str, torch.Tensor]],
    error: Exception,
) -> CheckpointError:
    needed = sum(tensor.nbytes for tensors in groups for tensor in tensors.values()) / 1e6
    place = folder if folder.is_dir() else folder.parent
    free = shutil.disk_usage(place).free / 1e6 if place.is_dir() else 0.0
    is_full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error)
    others = _list_checkpoints(folder)
    kept = f"Checkpoint {others[0].name} is untouched" if others else "No earlier checkpoint exists"
    advice = "Free space" if is_full or free < needed else "Put it right"
    return CheckpointError(
        f"checkpoint of step {step} could not be written to {folder}: {error} ({needed:.1f} MB needed, {free:.1f} MB "
        f"free). {kept}. {advice} and run the same command again."
    )


def _checksum(path: Path) -> dict[str, int]:
    """Size and CRC-32 of a file: against truncation and rot, not against malice."""
    total, size = 0, 0
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            total, size = zlib.crc32(block, total), size + len(block)
    return {"bytes": size, "crc32": total}


def _list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints, newest first."""
    return sorted((path for path in folder.glob("step-*") if path.is_dir()), reverse=True)


def find_newest_checkpoint(folder: Path) -> tuple[Path | None, dict[str, str]]:
    """The newest checkpoint that is whole.

    Args:
        folder: Folder of checkpoints.

    Returns:
        The checkpoint, or None where there is none at all; and, by name, what is wrong with newer ones.

    Raises:
        CheckpointError: There are checkpoints, and not one of them can be read.
    """
    broken: dict[str, str] = {}
    for path in _list_checkpoints(folder):
        problem = _find_problem(path)
        if problem is None:
            return path, broken
        broken[path.name] = problem
    if broken:
        listed = "; ".join(f"{name}: {problem}" for name, problem in broken.items())
        raise CheckpointError(
            f"expected a whole checkpoint in {folder}, found only broken ones ({listed}). Remove them to start anew, "
            "or restore them from a backup."
        )
    return None, broken


def _find_problem(path: Path) -> str | None:
    try:
        content = json.loads((path / _STATE).read_text(encoding="utf-8"))
        if content.get("format") != FORMAT:
            return f"format {content.get('format')}, expected {FORMAT}"
        for name, expected in content["files"].items():
            size = (path / name).stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size} bytes, expected {expected['bytes']}"
            if _checksum(path / name) != expected:
                return f"{name} has another checksum than when it was written"
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, Any]]:
    """Read a checkpoint that :func:`find_newest_checkpoint` named.

    Args:
        path: Its folder.

    Returns:
        Weights, moments and the content of ``state.json``.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        weights, moments = load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors")
        return weights, moments, json.loads((path / _STATE).read_text(encoding="utf-8"))
    except (OSError, SafetensorError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}. Remove it to use the one before.") from error
