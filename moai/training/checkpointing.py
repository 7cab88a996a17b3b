"""Training state on disk: safetensors and JSON, whole or not at all, never pickled."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

__all__ = ["latest_checkpoint", "load_checkpoint", "save_checkpoint"]

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps per parameter; Muon keeps the first two


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, extra: dict[str, Any] | None = None
) -> Path:
    """Write weights and optimizer state; older checkpoints of the folder are removed afterwards.

    Args:
        folder: Folder of checkpoints.
        step: Steps done.
        model: Trained module.
        optimizer: AdamW over ``model.parameters()`` in their order.
        extra: JSON-able values to keep.

    Returns:
        The new checkpoint's folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final, temporary = folder / f"step-{step:08d}", folder / f".step-{step:08d}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    save_file(_state(model), temporary / "model.safetensors")
    moments = {
        f"{name}.{moment}": optimizer.state[parameter][moment].detach().clone()
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for moment in _MOMENTS
        if moment in optimizer.state[parameter]
    }
    save_file(moments, temporary / "optimizer.safetensors")
    (temporary / "state.json").write_text(json.dumps({"step": step, **(extra or {})}), encoding="utf-8")
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)
    for other in folder.glob("step-*"):
        if other != final:
            shutil.rmtree(other, ignore_errors=True)
    return final


def latest_checkpoint(folder: Path) -> Path | None:
    """The furthest complete checkpoint of a folder, or None."""
    found = sorted(path for path in folder.glob("step-*") if (path / "state.json").is_file())
    return found[-1] if found else None


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Put weights and optimizer state back.

    Args:
        path: A checkpoint's folder.
        model: Module of the same shape.
        optimizer: AdamW over its parameters, or None for the weights alone.

    Returns:
        What ``state.json`` holds: ``step`` and the extra values.

    Raises:
        ValueError: The checkpoint belongs to another model.
    """
    weights = load_file(path / "model.safetensors")
    expected = _state(model)
    differing = sorted(set(weights) ^ set(expected)) or [
        name for name, value in expected.items() if value.shape != weights[name].shape
    ]
    if differing:
        raise ValueError(
            f"expected the weights of this model in {path}, got others (first difference: {differing[0]!r}). "
            "Choose another output folder, or the configuration the run was started with."
        )
    model.load_state_dict(weights, strict=False)
    if optimizer is not None:
        moments = load_file(path / "optimizer.safetensors")
        for name, parameter in model.named_parameters():
            if f"{name}.{_MOMENTS[0]}" in moments:
                # Copies lie in memory as an unbroken run's do: kernels may round unaligned ones otherwise.
                found = [moment for moment in _MOMENTS if f"{name}.{moment}" in moments]
                optimizer.state[parameter] = {moment: moments[f"{name}.{moment}"].clone() for moment in found}
    return json.loads((path / "state.json").read_text(encoding="utf-8"))


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    """State dict with each shared tensor once, contiguous, under its first name."""
    seen: set[int] = set()
    state = {}
    for name, value in model.state_dict().items():
        if value.data_ptr() not in seen or value.numel() == 0:
            seen.add(value.data_ptr())
            state[name] = value.detach().contiguous()
    return state
