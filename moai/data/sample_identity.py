"""What training data consists of, in a few numbers: a run that goes on must find the same data.

Contents count, not names or times of files: a source's rows, the bytes of its images, what verbalizers said of them.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track

__all__ = ["describe_rows", "fold_digests", "hash_parts", "hash_value", "show_progress"]

#: So many numbers stand for the rows of a source; a longer one is cut into as many stretches.
_MOST_STRETCHES = 1024
_DIGITS = 8
_Item = TypeVar("_Item")


def show_progress(items: Iterable[_Item], label: str, total: int | None = None) -> Iterator[_Item]:
    """The items, with a bar on standard error where that is a terminal.

    Args:
        items: What is worked through.
        label: What is done.
        total: How many they are; None = their length.
    """
    console, is_hidden = Console(stderr=True), not sys.stderr.isatty()
    yield from track(items, label, total, console=console, transient=True, disable=is_hidden)


def hash_parts(parts: Iterable[bytes]) -> bytes:
    """SHA-256 of byte strings, each told apart from the next."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def hash_value(value: Any) -> bytes:
    """SHA-256 of a sample's content.

    Args:
        value: Tensors, arrays, images, text, numbers, None; in dataclasses, mappings and sequences. Of anything else
            its class counts.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return hash_value({field.name: getattr(value, field.name) for field in fields(value)})
    if isinstance(value, Mapping):
        return hash_parts([b"mapping", *(hash_value(part) for item in value.items() for part in item)])
    if isinstance(value, list | tuple):
        return hash_parts([b"sequence", *map(hash_value, value)])
    if isinstance(value, torch.Tensor):
        plain = value.detach().cpu().contiguous()
        return hash_parts([str((plain.dtype, tuple(plain.shape))).encode(), plain.flatten().view(torch.uint8).numpy()])
    if isinstance(value, np.ndarray) and value.dtype != object:
        return hash_parts([str((value.dtype.str, value.shape)).encode(), value.tobytes()])
    if isinstance(value, Image.Image):
        return hash_parts([f"{value.mode} {value.size}".encode(), value.tobytes()])
    if isinstance(value, bytes):
        return hash_parts([b"bytes", value])
    if value is None or isinstance(value, str | int | float | bool | np.generic):
        return hash_parts([type(value).__name__.encode(), str(value).encode("utf-8", "surrogatepass")])
    return hash_parts([f"{type(value).__module__}.{type(value).__qualname__}".encode()])


def fold_digests(digests: Sequence[bytes]) -> dict[str, Any]:
    """Few numbers for many rows, from which the place of a difference can be told.

    Args:
        digests: One per row.

    Returns:
        ``count`` of rows and ``digests``, eight hexadecimal digits for each row or stretch of rows.
    """
    size = _stretch(len(digests))
    stretches = [digests[start : start + size] for start in range(0, len(digests), size)]
    return {"count": len(digests), "digests": "".join(hash_parts(each).hex()[:_DIGITS] for each in stretches)}


def _stretch(count: int) -> int:
    return max(1, -(-count // _MOST_STRETCHES))


def describe_rows(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Where two results of :func:`fold_digests` differ first, in words.

    Args:
        old: Of the rows before.
        new: Of the rows now.
    """
    counts = f"{new['count']} rows in place of {old['count']}" if new["count"] != old["count"] else ""
    size = _stretch(new["count"])
    if size != _stretch(old["count"]):
        return counts
    shorter = min(len(old["digests"]), len(new["digests"]))
    places = range(0, shorter, _DIGITS)
    same = (old["digests"][place : place + _DIGITS] == new["digests"][place : place + _DIGITS] for place in places)
    stretch = next((number for number, is_same in enumerate(same) if not is_same), shorter // _DIGITS)
    first, last = stretch * size + 1, min((stretch + 1) * size, max(old["count"], new["count"]))
    place = f"row {first} is the first that differs"
    if size > 1:
        place = f"the first that differs is among rows {first} to {last}"
    return f"{counts}; {place}" if counts else place
