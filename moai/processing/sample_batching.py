"""Batching: assignment of images to prompts, and padding of rows of unequal length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np


def holds_samples(value: Any) -> bool:
    """Whether a value holds samples rather than being one: a list or another sequence, a generator, a 4-D array."""
    if isinstance(value, (str, bytes, bytearray, memoryview)) or hasattr(value, "read"):  # a file gives lines
        return False
    return isinstance(value, (Sequence, Iterator)) or getattr(value, "ndim", 0) == 4


def as_list(value: Any) -> list[Any]:
    """A list of samples: of what holds several, in its order, or of the one sample."""
    return list(value) if holds_samples(value) else [value]


def is_nested(images: Sequence[Any]) -> bool:
    """Whether images come grouped, one list per prompt."""
    return any(isinstance(item, (list, tuple)) for item in images)


def unique_objects(items: Sequence[Any]) -> tuple[list[Any], list[int]]:
    """Objects without repetition, by identity: several questions about an image cost one look at it.

    Args:
        items: Objects.

    Returns:
        The different ones in order of appearance, and for every item its place among them.
    """
    places: dict[int, int] = {}
    index = [places.setdefault(id(item), len(places)) for item in items]
    return [items[index.index(place)] for place in range(len(places))], index


def group_images_by_placeholders(images: Any, counts: Sequence[int], image_token: str) -> list[list[Any]]:
    """Give every prompt its images, in order.

    Args:
        images: `None`, one image, a flat list, or one list per prompt.
        counts: Placeholders in each prompt.
        image_token: The placeholder, for messages.

    Returns:
        One list of images per prompt.

    Raises:
        ValueError: Images and placeholders do not match; the message has both numbers.
    """
    flat = [] if images is None else as_list(images)
    hint = f"Write one {image_token} per image; inside a question or other data the literal does not count."
    if is_nested(flat):
        if len(flat) != len(counts):
            raise ValueError(f"expected one list of images per prompt: {len(counts)} prompts, got {len(flat)} lists.")
        groups = [list(group) for group in flat]
        for index, (group, count) in enumerate(zip(groups, counts, strict=True)):
            if len(group) != count:
                raise ValueError(
                    f"prompt {index} has {count} {image_token} placeholders but {len(group)} images. {hint}"
                )
        return groups
    if len(flat) != sum(counts):
        raise ValueError(
            f"{len(counts)} prompts have {sum(counts)} {image_token} placeholders but {len(flat)} images were given. "
            f"{hint}"
        )
    stops = np.cumsum(counts).tolist()
    return [flat[stop - count : stop] for stop, count in zip(stops, counts, strict=True)]


def group_images_by_question(images: Any, num_questions: int) -> list[list[Any]]:
    """Give every question its images: grouped lists as they are, one each for a flat list, all to a single question.

    Raises:
        ValueError: The numbers of images and questions do not fit; the message has both.
    """
    if images is None:
        return [[] for _ in range(num_questions)]
    flat = as_list(images)
    if is_nested(flat):
        groups = [list(as_list(group)) for group in flat]
    elif num_questions == 1:
        groups = [flat]
    else:
        groups = [[image] for image in flat]
    if len(groups) != num_questions:
        raise ValueError(
            f"got {len(groups)} images (or lists of them) for {num_questions} questions. Pass one per question, or a "
            "list of lists for several images each."
        )
    return groups


def pad_rows(
    rows: Sequence[Sequence[Any]],
    value: Any,
    side: str = "left",
    length: int | None = None,
    multiple_of: int | None = None,
) -> list[list[Any]]:
    """Pad rows of integers (or of spans) to one length.

    Args:
        rows: B rows of any length.
        value: Padding value.
        side: "left" or "right".
        length: Target length; `None` takes the longest row's. Longer rows are left as they are.
        multiple_of: Round the target up to a multiple of this.

    Returns:
        B rows of equal length (at least 1, so that an all-empty batch stays a valid tensor).
    """
    target = max(1, length or 0, *(len(row) for row in rows))
    if multiple_of:
        target = -(-target // multiple_of) * multiple_of
    if side == "right":
        return [[*row, *[value] * (target - len(row))] for row in rows]
    return [[*[value] * (target - len(row)), *row] for row in rows]


def one_per_sample(value: Any, num_samples: int | None, name: str) -> list[Any]:
    """`value` as a list with one entry per sample; `None` gives a list of `None`.

    Raises:
        ValueError: The number differs from `num_samples`; the message has both.
    """
    if value is None:
        return [None] * (num_samples or 0)
    items = as_list(value)
    if num_samples is not None and len(items) != num_samples:
        raise ValueError(f"expected one of the {name} per prompt: {num_samples} prompts, got {len(items)} {name}.")
    return items
