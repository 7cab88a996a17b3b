"""What segmenter and detector both found is one thing: which of the two tells it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from verbalizers.core.boxes import box_iou, clip_boxes
from verbalizers.core.structures import Detections, Scene, Segments
from verbalizers.core.vocabulary_matching import means_the_same
from verbalizers.core.words import WordSettings

#: Detections that are compared with all segments at once.
_CHUNK = 256
#: Share of a segment's pixels inside a detection's box from which both show one thing, whatever it is called.
_MIN_INSIDE = 0.6

__all__ = [
    "find_covering",
    "keep_detections",
    "keep_segments",
    "merge_detections",
    "merge_scene",
    "sure_detections",
]


def merge_detections(segments: Segments | None, detections: Detections | None, min_iou: float) -> Detections | None:
    """The detections that the segmenter has not found already.

    A detection is the same thing as a segment when their names mean the same (plurals, spellings and synonyms count,
    see `vocabulary_matching`) and their boxes overlap.

    Args:
        segments: None merges nothing.
        detections: None stays None.
        min_iou: least intersection over union of the boxes, above 0.

    Returns:
        The others, in order; the very object given where nothing was merged.
    """
    if segments is None or detections is None or not len(segments) or not len(detections):
        return detections
    boxes = clip_boxes(detections.boxes_xyxy, detections.image_size_hw)
    merged = set()
    for start in range(0, len(boxes), _CHUNK):  # a table of all pairs at once could take gigabytes
        overlaps = box_iou(boxes[start : start + _CHUNK], segments.boxes_xyxy)  # (n, M)
        for row, column in zip(*np.nonzero(overlaps >= min_iou), strict=True):
            if means_the_same(detections.class_names[start + row], segments.class_names[column]):
                merged.add(start + int(row))
    if not merged:
        return detections
    return keep_detections(detections, [row for row in range(len(detections)) if row not in merged])


def find_covering(segments: Segments, detections: Detections, min_iou: float) -> np.ndarray:
    """Which detection shows the same thing as each segment.

    Their boxes overlap, and their names mean the same or most of the segment's pixels lie in the detection's box: small
    segmenters outline things better than they name them. A detection is one thing: of its segments it covers one,
    of its own name where there is such a one, and pieces of that name inside its box. A close thing's box holds
    much that is no part of it.

    Args:
        segments: M of them.
        detections: N of them.
        min_iou: least intersection over union of the boxes, above 0.

    Returns:
        int64 `(M,)` rows of the detections, -1 = none does.
    """
    covering = np.full(len(segments), -1, dtype=np.int64)
    if not len(segments) or not len(detections):
        return covering
    boxes = clip_boxes(detections.boxes_xyxy, detections.image_size_hw)
    found: list[tuple[bool, float, int, int, float]] = []
    for row, box in enumerate(boxes):
        overlaps = box_iou(box[None], segments.boxes_xyxy)[0]
        if (rows := np.flatnonzero(overlaps >= min_iou)).size:
            inside = _shares_inside(segments, box)
            for segment in rows.tolist():
                is_named = means_the_same(detections.class_names[row], segments.class_names[segment])
                if is_named or inside[segment] >= _MIN_INSIDE:
                    found.append((is_named, float(overlaps[segment]), row, segment, float(inside[segment])))
    found.sort(key=lambda pair: pair[:2], reverse=True)
    taken: dict[int, bool] = {}  # detection -> whether its first segment has its name
    for is_named, _, row, segment, share in found:
        is_piece = is_named and taken.get(row, False) and share >= _MIN_INSIDE
        if covering[segment] < 0 and (row not in taken or is_piece):
            covering[segment] = row
            taken.setdefault(row, is_named)
    return covering


def _shares_inside(segments: Segments, box: np.ndarray) -> np.ndarray:
    """float64 `(M,)`: share of each segment's pixels inside a box."""
    x0, y0, x1, y1 = np.round(box).astype(int)
    counts = np.bincount(segments.index_map[y0:y1, x0:x1].ravel() + 1, minlength=len(segments) + 1)[1:]
    return counts / np.maximum(segments.pixel_counts, 1)


def keep_detections(detections: Detections, rows: list[int]) -> Detections:
    """Some of the detections."""
    names = tuple(detections.class_names[row] for row in rows)
    return Detections(detections.boxes_xyxy[rows], names, detections.confidence[rows], detections.image_size_hw)


def keep_segments(segments: Segments, rows: list[int]) -> Segments:
    """Some of the segments, on the same map."""
    ids, names = (tuple(values[row] for row in rows) for values in (segments.segment_ids, segments.class_names))
    return Segments(segments.panoptic_map, ids, names, segments.confidence[rows])


def merge_scene(scene: Scene, words: WordSettings) -> Scene:
    """The scene in which what was found twice is told once, by the settings' `merge_iou` and `detections_first`."""
    segments, detections = scene.segments, scene.detections
    if words.merge_iou is None or segments is None or detections is None:
        return scene
    if not words.detections_first:
        merged = merge_detections(segments, detections, words.merge_iou)
        return scene if merged is detections else replace(scene, detections=merged)
    said = sure_detections(detections, words.detection_threshold, words.max_predictions)
    covering = find_covering(segments, said, words.merge_iou)
    if (covering < 0).all():
        return scene
    return replace(scene, segments=keep_segments(segments, np.flatnonzero(covering < 0).tolist()))


def sure_detections(detections: Detections, threshold: float, max_detections: int | None = None) -> Detections:
    """The named detections of at least some confidence, in order; at most so many, the surest."""
    is_sure = detections.confidence >= np.float32(threshold)
    rows = [row for row, name in enumerate(detections.class_names) if name and is_sure[row]]
    rows = sorted(sorted(rows, key=lambda row: -detections.confidence[row])[:max_detections])
    return keep_detections(detections, rows)
