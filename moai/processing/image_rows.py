"""Images of rows that have different numbers of them, as one array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .image_loading import load_image
from .pixel_values import compute_pixel_values
from .sample_batching import unique_objects

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
    given, places = unique_objects([image for group in groups for image in group])
    loaded = [load_image(image, max_pixels, allow_urls, allow_data_urls=True) for image in given]
    pixels = compute_pixel_values(image_processor, loaded)[places]
    counts = [len(group) for group in groups]
    values = np.zeros((len(groups), max(counts), *pixels.shape[1:]), dtype=np.float32)
    mask = np.arange(max(counts))[None] < np.array(counts)[:, None]
    values[mask] = pixels
    return values, mask
