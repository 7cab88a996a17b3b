"""What boxes and the map of segments say about every ordered pair of objects; pure numpy."""

from __future__ import annotations

import numpy as np

__all__ = ["NUM_MEASURES", "measure_pairs"]

#: Heights of the strips under an object's box and inside its lower edge, as shares of the box's height.
_UNDER, _BASE = 0.08, 0.17
_LARGEST = 3.0
NUM_MEASURES = 33


def measure_pairs(boxes_xyxy: np.ndarray, object_map: np.ndarray) -> np.ndarray:
    """Measure all ordered pairs of N objects.

    Args:
        boxes_xyxy: float32 `(N, 4)` in pixels of the map.
        object_map: int64 `(h, w)`, whose pixel it is; -1 = nobody's.

    Returns:
        float32 `(N, N, 33)`, subject first. Centre, size and lower edge of both, in parts of the image; distances in
        parts of their sizes, up to 3; how much of either box the other covers; and which share of three stretches of
        the map is the other's: under the box, at its base, in all of it.
    """
    height, width = object_map.shape
    number = len(boxes_xyxy)
    x0, y0, x1, y1 = (boxes_xyxy / np.array([width, height, width, height], np.float32)).T.astype(np.float64)
    w, h = np.maximum(x1 - x0, 1e-3), np.maximum(y1 - y0, 1e-3)
    x, y = (x0 + x1) / 2, (y0 + y1) / 2

    def both(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of subject and object, each `(N, N)`."""
        subject = np.repeat(values[:, None], number, axis=1)
        return subject, subject.T

    (left, left_o), (top, top_o), (right, right_o), (low, low_o) = map(both, (x0, y0, x1, y1))
    (wide, wide_o), (high, high_o) = both(w), both(h)
    shared_w = np.clip(np.minimum(right, right_o) - np.maximum(left, left_o), 0, None)
    shared_h = np.clip(np.minimum(low, low_o) - np.maximum(top, top_o), 0, None)
    shared, area, area_o = shared_w * shared_h, wide * high, wide_o * high_o
    stretches = _measure_stretches(boxes_xyxy, object_map)
    has_segment = np.isin(np.arange(number), object_map).astype(np.float64)
    alone = np.stack([x, y, w, h, y1], axis=1)
    together = np.stack(
        [
            (both(x)[1] - both(x)[0]) / (wide + wide_o),
            (both(y)[1] - both(y)[0]) / (high + high_o),
            *((low - top_o) / high_o, (low - low_o) / high_o, (top - top_o) / high_o, (top - low_o) / high),
            *(shared / area, shared / area_o, shared / (area + area_o - shared)),
            *(shared_w / wide, shared_h / high, shared_w / wide_o, shared_h / high_o),
            *(np.log(wide / wide_o), np.log(high / high_o)),
            *stretches,
            *(stretch.T for stretch in stretches),
            *both(has_segment),
        ],
        axis=-1,
    )
    places = (np.repeat(alone[:, None], number, axis=1), np.repeat(alone[None], number, axis=0))
    return np.concatenate([*places, together.clip(-_LARGEST, _LARGEST)], axis=-1).astype(np.float32)


def _measure_stretches(boxes_xyxy: np.ndarray, object_map: np.ndarray) -> np.ndarray:
    """float64 `(3, N, N)`: of the map under the first object's box, at its base and in it, the second one's share."""
    number, shares = len(boxes_xyxy), np.zeros((3, len(boxes_xyxy), len(boxes_xyxy)))
    for row, (x0, y0, x1, y1) in enumerate(np.round(boxes_xyxy).astype(np.int64)):
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), max(x1, x0 + 1), max(y1, y0 + 1)
        under, base = max(2, round(_UNDER * (y1 - y0))), max(2, round(_BASE * (y1 - y0)))
        for stretch, (first, last) in enumerate(((y1, y1 + under), (max(y1 - base, 0), y1), (y0, y1))):
            pixels = object_map[first:last, x0:x1]
            if pixels.size:
                shares[stretch, row] = np.bincount(pixels.ravel() + 1, minlength=number + 1)[1:] / pixels.size
    return shares
