"""Checks shared by the structures. Every message says what was expected, what came and what to do."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["checked_array", "checked_confidence", "checked_image_size", "checked_names"]


def checked_array(value: Any, dtype: type, shape: tuple[int | None, ...], name: str, next_step: str) -> np.ndarray:
    """Read-only copy of `value` with this dtype; None in `shape` stands for any length."""
    try:
        array = np.array(value, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be numeric, got {type(value).__name__}: {error}. {next_step}") from error
    # "[]" is all that JSON keeps of an empty array, whatever its shape was.
    if array.size == 0 and array.ndim != len(shape) and (None in shape or 0 in shape):
        array = array.reshape([length if length is not None else 0 for length in shape])
    fits = array.ndim == len(shape) and all(s is None or s == n for s, n in zip(shape, array.shape, strict=True))
    if not fits:
        wanted = "(" + ", ".join("N" if s is None else str(s) for s in shape) + ("," if len(shape) == 1 else "") + ")"
        raise ValueError(f"`{name}` must have shape {wanted}, got {array.shape}. {next_step}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"`{name}` must be finite, got NaN or infinity. Drop those entries before building.")
    array.setflags(write=False)
    return array


def checked_confidence(value: Any, length: int, name: str = "confidence") -> np.ndarray:
    """float32 scores `(length,)` in [0, 1]."""
    array = checked_array(value, np.float32, (length,), name, "Give one score per entry.")
    if array.size and (array.min() < 0 or array.max() > 1 + 1e-4):
        raise ValueError(
            f"`{name}` must lie in [0, 1], got {array.min():.4g} to {array.max():.4g}. Apply sigmoid or softmax first."
        )
    return array


def checked_names(value: Any, name: str) -> tuple[str, ...]:
    """A tuple of strings; one bare string is refused, it would be taken apart into letters."""
    if isinstance(value, str):
        raise ValueError(f"`{name}` must be a sequence of strings, got one string. Write ({value!r},).")
    names = tuple(value)
    for entry in names:
        if not isinstance(entry, str):
            raise ValueError(f"`{name}` must hold strings, got {type(entry).__name__}. Map ids to names first.")
    return names


def checked_image_size(value: Any, name: str = "image_size_hw") -> tuple[int, int]:
    """(height, width), both at least 1."""
    size = tuple(int(length) for length in value)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"`{name}` must be (height, width), both at least 1, got {value!r}. Use array.shape[:2].")
    return size
