"""Checks of structures and settings. Every message says what was expected, what came and what to do."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from verbalizers.core.boxes import is_inside_image
from verbalizers.core.valid_text import make_valid

__all__ = [
    "MAX_MAP_PIXELS",
    "check_inside_image",
    "check_map_shape",
    "check_range",
    "checked_array",
    "checked_boxes",
    "checked_confidence",
    "checked_image_size",
    "checked_names",
]

#: Largest map, in pixels times channels; what Pillow itself refuses to open.
MAX_MAP_PIXELS = 178_956_970


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


def check_flags(settings: Any, *names: str) -> None:
    """Check that attributes of an object are true or false: "false" in quotes would count as true.

    Raises:
        ValueError: one is neither.
    """
    for name in names:
        if not isinstance(getattr(settings, name), bool):
            raise ValueError(f"`{name}` must be true or false, got {getattr(settings, name)!r}. Leave quotes out.")


def checked_array(value: Any, dtype: type, shape: tuple[int | None, ...], name: str, next_step: str) -> np.ndarray:
    """Read-only copy of `value` with this dtype, which it must fit; None in `shape` stands for any length."""
    try:
        source = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors on another device
        raise ValueError(f"`{name}` must be numeric, got {type(value).__name__}: {error}. {next_step}") from error
    is_integer = np.issubdtype(dtype, np.integer)
    # Else numpy would read digits in strings, and cut fractions off: other numbers, without a word.
    if source.size and source.dtype.kind not in ("iu" if is_integer else "iuf"):
        raise ValueError(
            f"`{name}` must hold {'integers' if is_integer else 'numbers'}, got {source.dtype}. {next_step}"
        )
    if source.size and is_integer:
        limits = np.iinfo(dtype)
        if source.min() < limits.min or source.max() > limits.max:
            raise ValueError(
                f"`{name}` must lie in [{limits.min}, {limits.max}], got {source.min()} to {source.max()}. {next_step}"
            )
    with np.errstate(over="ignore"):  # becomes infinity, which is refused below
        array = np.array(source, dtype=dtype)
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


def checked_boxes(value: Any, length: int | None, name: str, next_step: str) -> np.ndarray:
    """float32 boxes `(length, 4)`: left, top, right, bottom, each with an area."""
    boxes = checked_array(value, np.float32, (length, 4), name, next_step)
    is_wrong = (boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])
    if is_wrong.any():
        raise ValueError(
            f"`{name}` must be left, top, right, bottom with right > left and bottom > top, got "
            f"{_show_first(boxes, is_wrong)}. Drop boxes without area; x, y, width, height is another form."
        )
    return boxes


def check_inside_image(boxes_xyxy: np.ndarray, image_size_hw: tuple[int, int], name: str) -> None:
    """Check that boxes `(N, 4)` share some area with their image; a part of them may reach outside."""
    is_wrong = ~is_inside_image(boxes_xyxy, image_size_hw)
    if is_wrong.any():
        raise ValueError(
            f"`{name}` must lie in the image of {image_size_hw} (height, width), at least in part, got "
            f"{_show_first(boxes_xyxy, is_wrong)}. Give pixels of the original image, and the size of that one."
        )


def _show_first(rows: np.ndarray, is_wrong: np.ndarray) -> str:
    row = int(is_wrong.argmax())
    return f"{rows[row].tolist()} in row {row} ({int(is_wrong.sum())} such of {len(rows)})"


def checked_confidence(value: Any, length: int, name: str = "confidence") -> np.ndarray:
    """float32 scores `(length,)` in [0, 1]; what lies outside by rounding is moved there."""
    array = checked_array(value, np.float32, (length,), name, "Give one score per entry.")
    if array.size and (array.min() < -1e-4 or array.max() > 1 + 1e-4):
        raise ValueError(
            f"`{name}` must lie in [0, 1], got {array.min():.4g} to {array.max():.4g}. Apply sigmoid or softmax first."
        )
    array = array.clip(0, 1)
    array.setflags(write=False)
    return array


def checked_names(value: Any, name: str) -> tuple[str, ...]:
    """A tuple of strings in valid Unicode; one bare string is refused, it would be taken apart into letters."""
    if isinstance(value, str):
        raise ValueError(f"`{name}` must be a sequence of strings, got one string. Write ({value!r},).")
    try:
        names = tuple(value)
    except TypeError as error:
        raise ValueError(f"`{name}` must be a sequence of strings, got {type(value).__name__}.") from error
    for entry in names:
        if not isinstance(entry, str):
            raise ValueError(f"`{name}` must hold strings, got {type(entry).__name__}. Map ids to names first.")
    return tuple(make_valid(entry) for entry in names)


def checked_image_size(value: Any, name: str = "image_size_hw") -> tuple[int, int]:
    """(height, width), both at least 1."""
    try:
        size = tuple(operator.index(length) for length in value)
    except TypeError:
        size = ()
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"`{name}` must be (height, width), both at least 1, got {value!r}. Use array.shape[:2].")
    return size


def check_map_shape(shape: tuple[int, ...]) -> None:
    """Check `(height, width)` or `(height, width, channels)` before memory is taken for it.

    Raises:
        ValueError: a length is below 1, or they are more than `MAX_MAP_PIXELS` together.
    """
    if min(shape) < 1 or math.prod(shape) > MAX_MAP_PIXELS:
        got = " x ".join(str(length) for length in shape)
        raise ValueError(f"expected a map of 1 to {MAX_MAP_PIXELS} values, got {got}. Resize it.")
