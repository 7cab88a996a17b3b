"""Panoptic segmentation: its words and its painted map."""

from __future__ import annotations

import numpy as np

from verbalizers.boxes import clip_boxes, format_box, normalize_boxes
from verbalizers.structures import Segments
from verbalizers.words import BOXES_OPENING, list_sentence, strip_coco_suffixes

__all__ = ["pascal_colors", "render_segmentation_map", "verbalize_segments"]

RELEASE_NUM_COLORS = 134  # nothing + the 133 COCO panoptic classes: all the colours that the release knows


def verbalize_segments(segments: Segments | None, compat: bool = False) -> str:
    """Segments in words: `The image includes bounding box coordinates and their objects: [..] name.`.

    Args:
        segments: None gives "".
        compat: speak as the release does. It takes the boxes in ascending id order whatever the order of the
            names, and says nothing at all when an id has no pixels or a class is unknown; ours gives each
            name its own box and leaves out only that segment.
    """
    if segments is None:
        return ""
    if compat:
        return _verbalize_as_released(segments)
    boxes = normalize_boxes(clip_boxes(segments.boxes_xyxy, segments.image_size_hw), segments.image_size_hw)
    entries = zip(segments.class_names, boxes, segments.pixel_counts, strict=True)
    items = [f"{format_box(box)} {strip_coco_suffixes(name)}" for name, box, pixels in entries if name and pixels]
    return list_sentence(BOXES_OPENING, items)


def _verbalize_as_released(segments: Segments) -> str:
    height, width = segments.image_size_hw
    present = [int(i) for i in np.unique(segments.panoptic_map) if i > 0]
    if len(present) < len(segments) or not all(segments.class_names):
        return ""
    everything = Segments(segments.panoptic_map, present, [""] * len(present), np.ones(len(present)))
    # The release multiplies by the float32 reciprocal; dividing could round a tie the other way.
    scale = np.array([1 / width, 1 / height, 1 / width, 1 / height], dtype=np.float32)
    boxes = (everything.boxes_xyxy * scale)[: len(segments)]
    items = [
        f"{format_box(box)} {strip_coco_suffixes(name)}" for name, box in zip(segments.class_names, boxes, strict=True)
    ]
    return list_sentence(BOXES_OPENING, items)


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
    """Paint each segment id with its Pascal colour: the picture that MoAI's vision tower sees beside the
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
    # Few distinct ids, many pixels: colour the ids, then look up.
    distinct, positions = np.unique(ids, return_inverse=True)
    return pascal_colors(distinct)[positions.reshape(ids.shape)]
