"""A checkpoint in one file of torch's or safetensors' format, read without running what is in it."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

__all__ = ["find_checkpoint_file", "list_tensor_names", "read_checkpoint_file"]

TORCH_SUFFIXES = (".pt", ".pth", ".bin")
#: Under which names training scripts keep the weights beside their own state.
_NESTED = ("model_state_dict", "state_dict", "model", "module")


def find_checkpoint_file(source: Path) -> Path | None:
    """The file itself, or the only one of torch's or safetensors' format in a folder; None where there is none."""
    if source.is_file():
        return source if source.suffix in (*TORCH_SUFFIXES, ".safetensors") else None
    if not source.is_dir():
        return None
    found = [file for suffix in (*TORCH_SUFFIXES, ".safetensors") for file in sorted(source.glob(f"*{suffix}"))]
    return found[0] if len(found) == 1 else None


def list_tensor_names(file: Path) -> list[str]:
    """Names of a file's tensors.

    Raises:
        ValueError: It cannot be read safely.
    """
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt") as tensors:
                return list(tensors.keys())
        except SafetensorError as error:
            raise ValueError(f"{file} is no whole safetensors file: {error}. Fetch it again.") from error
    return list(read_checkpoint_file(file))


def read_checkpoint_file(file: Path) -> dict[str, torch.Tensor]:
    """A file's tensors by name, mapped rather than copied where its format allows.

    Raises:
        ValueError: It holds something else, is damaged, or needs unpickling.
    """
    if file.suffix == ".safetensors":
        list_tensor_names(file)
        return load_file(file)
    try:
        state = _load(file)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise ValueError(
            f"{file} is no plain collection of tensors, or is damaged: {str(error).splitlines()[0]} Only files that "
            "torch.load(weights_only=True) reads are accepted; save the weights as safetensors."
        ) from error
    for name in _NESTED:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"expected {file} to hold tensors by name, got {type(state).__name__}. Save a state dict.")
    return state


def _load(file: Path) -> object:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(file, map_location="cpu", weights_only=True)  # the format before torch 1.6
