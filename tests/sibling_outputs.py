"""Reference outputs of the systems beside MoAI: ``golden/siblings``, one NAME.json and NAME.safetensors each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

__all__ = ["load_sibling", "with_prefix"]


def load_sibling(golden_dir: Path, name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Account and tensors of a reference output; skips where it is absent.

    Tensors are cloned, as unaligned memory changes rounding, and half precision becomes float32, as the outputs were
    computed.
    """
    folder = golden_dir / "siblings"
    if not (folder / f"{name}.safetensors").is_file():
        pytest.skip(f"no reference output {name} in {folder}")
    tensors = {key: tensor.clone() for key, tensor in load_file(folder / f"{name}.safetensors").items()}
    tensors = {key: t.float() if t.dtype == torch.float16 else t for key, t in tensors.items()}
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8")), tensors


def with_prefix(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
