"""Segmentation maps: panoptic segments painted in Pascal VOC's colours."""

from __future__ import annotations

import numpy as np

from verbalizers.core.structures import Segments

__all__ = ["pascal_colors", "render_segmentation_map"]

RELEASE_NUM_COLORS = 134  # nothing + the 133 COCO panoptic classes: all the colours that the release knows


#: Ids below this are coloured by a table of all of them.
_LARGEST_TABLE = 4096


def pascal_colors(indices: np.ndarray) -> np.ndarray:
    """The Pascal VOC colour map for any index below 2**24 (the VOC development kit's bit interleaving).

    Args:
        indices: integers of any shape; 0 is black.

    Returns:
        uint8, `indices.shape + (3,)`, RGB.
    """
    indices = np.asarray(indices, dtype=np.int64)
    colors = np.zeros((*indices.shape, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[..., channel] |= (((indices >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colors


def render_segmentation_map(
    segments: Segments | None, image_size_hw: tuple[int, int] | None = None, compat: bool = False
) -> np.ndarray:
    """Paint each segment id with its Pascal colour: the image that MoAI's vision tower sees beside the
    photograph.

    Args:
        segments: None = nothing known, a black map of `image_size_hw`.
        image_size_hw: wanted height and width; None = the size of the panoptic map. A different size is
            reached by nearest-neighbour sampling of the ids.
        compat: raise as the release does for ids above 133, which its colour table lacks.

    Returns:
        uint8 `(H, W, 3)` RGB. (The release holds the same colours divided by 255.)

    Raises:
        ValueError: neither segments nor a size is given.
        IndexError: with `compat`, an id above 133.
    """
    if segments is None:
        if image_size_hw is None:
            raise ValueError("expected segments or image_size_hw, got neither. Give the size of the black map.")
        return np.zeros((*image_size_hw, 3), dtype=np.uint8)
    ids = np.maximum(segments.panoptic_map, 0)
    if compat and ids.max() >= RELEASE_NUM_COLORS:
        raise IndexError(f"index {ids.max()} is out of bounds for axis 0 with size {RELEASE_NUM_COLORS}")
    if image_size_hw is not None and tuple(image_size_hw) != segments.image_size_hw:
        (height, width), (new_height, new_width) = segments.image_size_hw, image_size_hw
        rows = np.arange(new_height) * height // new_height
        columns = np.arange(new_width) * width // new_width
        ids = ids[rows[:, None], columns[None, :]]
    # Few distinct ids, many pixels: colour the ids, then look up; sorting pixels is the slow way, for huge ids only.
    if ids.size and ids.max() < _LARGEST_TABLE:
        return pascal_colors(np.arange(ids.max() + 1))[ids]
    distinct, positions = np.unique(ids, return_inverse=True)
    return pascal_colors(distinct)[positions.reshape(ids.shape)]
