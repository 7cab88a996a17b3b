"""Reading a checkpoint tensor by tensor: safetensors or weights-only torch files, one, sharded, or a whole folder."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

INDEX_SUFFIX = ".index.json"
MAX_LISTED = 12
TORCH_SUFFIXES = (".bin", ".pt", ".pth")
#: Under which names training scripts keep the weights beside their own state.
_NESTED = ("model_state_dict", "state_dict", "model", "module")
NO_WEIGHTS = ("training_args.bin", "optimizer.bin", "scheduler.bin", "scaler.bin")


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor before it is read.

    Attributes:
        file: The file that holds it.
        shape: Its shape.
        dtype: Its dtype.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


class TensorFolder:
    """The tensors of a checkpoint, read one at a time. Nothing is ever unpickled beyond plain tensors.

    Args:
        folder: A file, or what holds ``*.safetensors`` or, where there are none, ``*.bin`` files or one ``*.pt`` or
            ``*.pth``; an index file beside them is obeyed.

    Attributes:
        folder: What was given.
        files: The files of weights.
        tensors: Name -> what is known of it.

    Raises:
        ValueError: If there is no weight file, a file is damaged or needs unpickling, two files hold the same
            tensor, or files and index disagree.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        is_file = self.folder.is_file() and self.folder.suffix in (".safetensors", *TORCH_SUFFIXES)
        self.files = [self.folder] if is_file else _find_weight_files(self.folder)
        self._bin_file: tuple[Path, dict[str, torch.Tensor]] | None = None
        self.tensors: dict[str, TensorInfo] = {}
        for file in self.files:
            for name, info in self._describe(file):
                if name in self.tensors:
                    raise ValueError(
                        f"Tensor {name} stands in both {self.tensors[name].file.name} and {file.name} of {folder}. "
                        "Remove the file that does not belong to the checkpoint."
                    )
                self.tensors[name] = info
        self._check_index()

    @property
    def place(self) -> Path:
        """The folder of the files."""
        return self.files[0].parent

    @property
    def widest_dtype(self) -> torch.dtype:
        """A floating dtype that holds all of them without loss."""
        dtypes = {info.dtype for info in self.tensors.values() if info.dtype.is_floating_point}
        return reduce(torch.promote_types, dtypes)

    @property
    def main_dtype(self) -> torch.dtype:
        """The floating dtype of most parameters."""
        counts: Counter[torch.dtype] = Counter()
        for info in self.tensors.values():
            if info.dtype.is_floating_point:
                counts[info.dtype] += torch.Size(info.shape).numel()
        return counts.most_common(1)[0][0]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name."""
        return {name: info.shape for name, info in self.tensors.items()}

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor into memory, in its stored dtype."""
        file = self.tensors[name].file
        if file.suffix in TORCH_SUFFIXES:
            return self._load_bin(file)[name].clone()
        with safe_open(file, framework="pt") as handle:
            return handle.get_tensor(name)

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every name and tensor, file by file: each file is opened once."""
        for file in self.files:
            names = [name for name, info in self.tensors.items() if info.file == file]
            if file.suffix in TORCH_SUFFIXES:
                tensors = self._load_bin(file)
                for name in names:
                    yield name, tensors[name]
                continue
            with safe_open(file, framework="pt") as handle:
                for name in names:
                    yield name, handle.get_tensor(name)

    def _describe(self, file: Path) -> Iterator[tuple[str, TensorInfo]]:
        if file.suffix in TORCH_SUFFIXES:
            for name, tensor in self._load_bin(file).items():
                yield name, TensorInfo(file, tuple(tensor.shape), tensor.dtype)
            return
        try:
            with safe_open(file, framework="pt") as handle:
                for name in handle.keys():  # noqa: SIM118 (the handle is no mapping)
                    piece = handle.get_slice(name)
                    dtype = handle.get_tensor(name).dtype if not piece.get_shape() else _read_dtype(piece)
                    yield name, TensorInfo(file, tuple(piece.get_shape()), dtype)
        except SafetensorError as error:
            raise ValueError(f"{file} is no whole safetensors file ({error}). Fetch it again.") from error

    def _load_bin(self, file: Path) -> dict[str, torch.Tensor]:
        """Open one file of torch's format; only the latest stays open, mapped rather than copied where that can be."""
        if self._bin_file is not None and self._bin_file[0] == file:
            return self._bin_file[1]
        self._bin_file = None
        try:
            state = _load_weights_only(file)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
            raise ValueError(
                f"{file} is no plain collection of tensors, or is damaged: {str(error).splitlines()[0]} Only files "
                "that torch.load(weights_only=True) reads are accepted; save the weights as safetensors."
            ) from error
        for name in _NESTED:
            if isinstance(state, dict) and isinstance(state.get(name), dict):
                state = state[name]
        if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise ValueError(
                f"Expected {file} to hold tensors by name, got {type(state).__name__}. Save model.state_dict() instead."
            )
        self._bin_file = (file, state)
        return state

    def _check_index(self) -> None:
        is_torch = self.files[0].suffix in TORCH_SUFFIXES
        stem, suffix = ("pytorch_model", ".bin") if is_torch else ("model", ".safetensors")
        index = self.folder / f"{stem}{suffix}{INDEX_SUFFIX}"
        if not index.is_file() or self.files == [self.folder / f"{stem}{suffix}"]:
            return
        absent = sorted(name for name in _read_weight_map(index) if name not in self.tensors)
        if absent:
            raise ValueError(
                f"{index.name} lists {len(absent)} tensor(s) that no file holds: {list_names(absent)}. A shard is cut "
                "off: fetch the folder again."
            )


def _load_weights_only(file: Path) -> object:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(file, map_location="cpu", weights_only=True)  # the format before torch 1.6


def _read_dtype(piece: object) -> torch.dtype:
    return piece[:0].dtype


def _find_weight_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"Expected a checkpoint folder, got {folder}, which is none. Check the path.")
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        # The order of transformers: one standard file, else the index, else whatever carries the suffix.
        if (folder / f"{stem}{suffix}").is_file():
            return [folder / f"{stem}{suffix}"]
        index = folder / f"{stem}{suffix}{INDEX_SUFFIX}"
        if index.is_file():
            return [_existing(folder / name) for name in sorted(_indexed_files(index))]
        files = [file for file in sorted(folder.glob(f"*{suffix}")) if file.name not in NO_WEIGHTS]
        if files:
            return files
    files = [file for suffix in TORCH_SUFFIXES[1:] for file in sorted(folder.glob(f"*{suffix}"))]
    if len(files) != 1:
        raise ValueError(f"Expected *.safetensors or *.bin weight files in {folder}, got none. Check the path.")
    return files


def _read_weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no weight index (a JSON object with `weight_map`). Fetch it again.") from error


def _indexed_files(index: Path) -> set[str]:
    names = set(_read_weight_map(index).values())
    escaping = sorted(name for name in names if Path(name).name != name)
    if escaping:
        raise ValueError(
            f"{index} names files outside its folder: {list_names(escaping)}. Do not trust this checkpoint."
        )
    return names


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise ValueError(f"The weight index names {file.name}, which is not in {file.parent}. Fetch the missing shard.")
    return file


def list_names(names: list[str]) -> str:
    """Join names for a message, the first dozen of them."""
    more = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
