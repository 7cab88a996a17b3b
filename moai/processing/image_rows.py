"""Images of rows that have different numbers of them, as one array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .guarded_processor import load_pixels

__all__ = ["stack_images"]


def stack_images(
    groups: Sequence[Sequence[Any]], image_processor: Any, max_pixels: int, allow_urls: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of each row's images, zeros where a row has fewer than another.

    Args:
        groups: Images of B rows; not all empty.
        image_processor: Makes the pixels.
        max_pixels: Largest image that is decoded.
        allow_urls: Whether http(s) addresses are followed.

    Returns:
        ``(B, T, 3, H, W)`` float32 and ``(B, T)`` bool, True = an image.

    Raises:
        ValueError: An image cannot be read.
    """
    given = [image for group in groups for image in group]
    pixels = load_pixels(given, image_processor, max_pixels, allow_urls, allow_data_urls=True)
    counts = [len(group) for group in groups]
    values = np.zeros((len(groups), max(counts), *pixels.shape[1:]), dtype=np.float32)
    mask = np.arange(max(counts))[None] < np.array(counts)[:, None]
    values[mask] = pixels
    return values, mask
