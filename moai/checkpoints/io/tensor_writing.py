"""Writing safetensors shard by shard, so that no more than one shard is in memory."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

DEFAULT_SHARD_BYTES = 2 * 1024**3


class ShardedWriter:
    """Collects tensors and writes a file whenever a shard is full.

    Args:
        folder: Where to write; must exist.
        shard_bytes: Size a shard should not exceed (a single larger tensor gets a shard of its own).
    """

    def __init__(self, folder: Path, shard_bytes: int = DEFAULT_SHARD_BYTES) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self.num_bytes = self.num_tensors = self.num_parameters = 0
        self._pending: dict[str, torch.Tensor] = {}
        self._pending_bytes = 0
        self._shards: list[list[str]] = []

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take one tensor; it may be written at once."""
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._pending_bytes + size > self.shard_bytes:
            self._flush()
        # A clone of its own: safetensors refuses tensors that share memory, and mapped files must not be kept open.
        self._pending[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
        self._pending_bytes += size
        self.num_bytes += size
        self.num_tensors += 1
        self.num_parameters += tensor.numel()

    def finish(self) -> list[str]:
        """Write what is left, the final file names and the index.

        Returns:
            Names of the weight files.
        """
        self._flush()
        total = len(self._shards)
        if total == 1:
            self._part(0).rename(self.folder / "model.safetensors")
            return ["model.safetensors"]
        names = [f"model-{index + 1:05d}-of-{total:05d}.safetensors" for index in range(total)]
        weight_map = {}
        for index, (name, tensors) in enumerate(zip(names, self._shards, strict=True)):
            self._part(index).rename(self.folder / name)
            weight_map |= dict.fromkeys(tensors, name)
        index = {
            "metadata": {"total_size": self.num_bytes, "total_parameters": self.num_parameters},
            "weight_map": weight_map,
        }
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
        return names

    def _part(self, index: int) -> Path:
        return self.folder / f"shard-{index:05d}.part"

    def _flush(self) -> None:
        if self._pending:
            save_file(self._pending, self._part(len(self._shards)), metadata={"format": "pt"})
            self._shards.append(list(self._pending))
            self._pending, self._pending_bytes = {}, 0
