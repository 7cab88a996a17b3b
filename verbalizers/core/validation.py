"""Checks of structures and settings. Every message says what was expected, what came and what to do."""

from __future__ import annotations

from typing import Any

import numpy as np

from verbalizers.core.valid_text import make_valid

__all__ = ["check_range", "checked_array", "checked_confidence", "checked_image_size", "checked_names"]


def check_range(settings: Any, *names: str, low: float = 0, high: float | None = 1, is_open: bool = False) -> None:
    """Check numbers among an object's settings.

    Args:
        settings: the object.
        names: which of its attributes.
        low: the least value.
        high: the largest value; None = any.
        is_open: they must exceed `low`.

    Raises:
        ValueError: one lies outside; NaN does.
    """
    for name in names:
        value = getattr(settings, name)
        if (low < value if is_open else low <= value) and (high is None or value <= high):
            continue
        wanted = f"{'exceed' if is_open else 'be at least'} {low}"
        if high is not None:
            wanted = f"lie in {'(' if is_open else '['}{low}, {high}]"
        raise ValueError(f"`{name}` must {wanted}, got {value}.")


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
    """A tuple of strings in valid Unicode; one bare string is refused, it would be taken apart into letters."""
    if isinstance(value, str):
        raise ValueError(f"`{name}` must be a sequence of strings, got one string. Write ({value!r},).")
    names = tuple(value)
    for entry in names:
        if not isinstance(entry, str):
            raise ValueError(f"`{name}` must hold strings, got {type(entry).__name__}. Map ids to names first.")
    return tuple(make_valid(entry) for entry in names)


def checked_image_size(value: Any, name: str = "image_size_hw") -> tuple[int, int]:
    """(height, width), both at least 1."""
    size = tuple(int(length) for length in value)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"`{name}` must be (height, width), both at least 1, got {value!r}. Use array.shape[:2].")
    return size
