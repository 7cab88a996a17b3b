"""Box arithmetic in pure numpy.

Boxes are `xyxy` (left, top, right, bottom) in pixels of the original image unless a name says `normalized`
(fractions of the image, 0 to 1) or `cxcywh` (centre, width, height). Right and bottom are exclusive: a
one-pixel mask at (x, y) has the box [x, y, x + 1, y + 1].
"""

from __future__ import annotations

import numpy as np

__all__ = [
    "box_area",
    "box_iou",
    "clip_boxes",
    "format_box",
    "is_inside_image",
    "nms_indices",
    "normalize_boxes",
    "quads_to_boxes",
]


def normalize_boxes(boxes_xyxy: np.ndarray, image_size_hw: tuple[int, int]) -> np.ndarray:
    """Divide pixel boxes by the image size.

    Args:
        boxes_xyxy: float `(N, 4)` pixels.
        image_size_hw: height and width of the image in pixels.

    Returns:
        float32 `(N, 4)`, fractions of the image. Not clipped: see `clip_boxes`.
    """
    height, width = image_size_hw
    divisor = np.array([width, height, width, height], dtype=np.float32)
    return np.asarray(boxes_xyxy, dtype=np.float32).reshape(-1, 4) / divisor


def clip_boxes(boxes_xyxy: np.ndarray, image_size_hw: tuple[int, int]) -> np.ndarray:
    """Move every corner into the image. Returns a float32 `(N, 4)` copy; -0.0 becomes 0.0."""
    height, width = image_size_hw
    limit = np.array([width, height, width, height], dtype=np.float32)
    # Adding 0.0 turns the negative zero that np.clip lets through into a positive one.
    return np.clip(np.asarray(boxes_xyxy, dtype=np.float32).reshape(-1, 4), np.float32(0), limit) + np.float32(0)


def is_inside_image(boxes_xyxy: np.ndarray, image_size_hw: tuple[int, int]) -> np.ndarray:
    """Which boxes `(N, 4)` have an area, some of it in the image: bool `(N,)`.

    Models know images that are padded or resized: a few of their boxes lie in the padding, or have become lines.
    """
    left, top, right, bottom = np.asarray(boxes_xyxy, dtype=np.float32).reshape(-1, 4).T
    height, width = image_size_hw
    has_area = (right > left) & (bottom > top)
    return has_area & (right > 0) & (bottom > 0) & (left < width) & (top < height)


def box_area(boxes_xyxy: np.ndarray) -> np.ndarray:
    """Areas `(N,)` of `(N, 4)` boxes; inverted boxes count as empty."""
    boxes = np.asarray(boxes_xyxy, dtype=np.float32).reshape(-1, 4)
    return np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1)


def box_iou(first_xyxy: np.ndarray, second_xyxy: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair, float32 `(N, M)` for N and M boxes; two empty boxes give 0."""
    first = np.asarray(first_xyxy, dtype=np.float32).reshape(-1, 4)
    second = np.asarray(second_xyxy, dtype=np.float32).reshape(-1, 4)
    top_left = np.maximum(first[:, None, :2], second[None, :, :2])  # (N, M, 2)
    bottom_right = np.minimum(first[:, None, 2:], second[None, :, 2:])
    intersection = np.prod(np.clip(bottom_right - top_left, 0, None), axis=2)
    union = box_area(first)[:, None] + box_area(second)[None, :] - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def nms_indices(boxes_xyxy: np.ndarray, groups: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Greedy non-maximum suppression within groups.

    Args:
        boxes_xyxy: `(N, 4)`, highest confidence first.
        groups: `(N,)`; only boxes of the same group suppress each other.
        iou_threshold: a box is dropped when a kept one of its group overlaps it by more than this.

    Returns:
        int64 indices that are kept, ascending.
    """
    kept: list[int] = []
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(groups[order][1:] != groups[order][:-1]) + 1
    for waiting in np.split(order, starts):
        while len(waiting):
            kept.append(int(waiting[0]))
            overlaps = box_iou(boxes_xyxy[waiting[0]], boxes_xyxy[waiting[1:]])[0]
            waiting = waiting[1:][overlaps <= iou_threshold]
    return np.array(sorted(kept), dtype=np.int64)


def quads_to_boxes(quads: np.ndarray) -> np.ndarray:
    """Upright boxes `(N, 4)` around quadrilaterals `(N, 4, 2)` of x, y points."""
    points = np.asarray(quads, dtype=np.float32).reshape(-1, 4, 2)
    return np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1)


def format_box(normalized_xyxy: np.ndarray) -> str:
    """`[x0, y0, x1, y1]` with two decimals: the form in which MoAI reads boxes (arXiv 2403.07508)."""
    return "[" + ", ".join(f"{float(value):.2f}" for value in normalized_xyxy) + "]"
