"""What segmenter and detector found in an image, as one list of named objects: for verbalizers that relate them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from verbalizers.core.boxes import clip_boxes
from verbalizers.core.merging import find_covering, keep_detections, merge_detections, sure_detections
from verbalizers.core.structures import Scene, Segments
from verbalizers.core.words import LeftOutWarning

__all__ = ["NamedObjects", "name_objects"]

#: Longest side of the map in which contacts are measured.
_MAX_MAP_SIDE = 1024
#: Detections, and segments, beyond are left out, lowest confidence first: pairs grow with the square.
_MAX_OBJECTS = 200


@dataclass(frozen=True, eq=False)
class NamedObjects:
    """N objects, segments first.

    Attributes:
        names: theirs.
        boxes_xyxy: float32 `(N, 4)` in image pixels.
        object_map: int64 `(h, w)`, whose pixel it is; -1 = nobody's. Detections have those of segments whose place
            they take, or none.
        stride: image pixels per pixel of the map.
    """

    names: tuple[str, ...]
    boxes_xyxy: np.ndarray
    object_map: np.ndarray
    stride: int


def name_objects(
    scene: Scene, detection_threshold: float, merge_iou: float, backend: str, detections_first: bool = False
) -> NamedObjects:
    """List the objects of a scene.

    Args:
        scene: What was found.
        detection_threshold: lowest confidence of a detection that takes part.
        merge_iou: a detection that overlaps a segment of its name by this much is the same object (`merging`).
        backend: who asks, for errors and warnings.
        detections_first: a detection takes the place and the pixels of segments that show the same, even by another
            name (`merging.find_covering`).

    Raises:
        ValueError: the scene has neither segments nor detections.
    """
    if scene.segments is None and scene.detections is None:
        failed = "; ".join(f"{k}: {scene.failures[k]}" for k in ("segmentation", "detection") if k in scene.failures)
        raise ValueError(
            f"{backend} expected segments or detections of the image, got neither{f' ({failed})' if failed else ''}. "
            "Let a segmentation or detection verbalizer look too."
        )
    height, width = scene.image_size_hw
    stride = -(-max(height, width) // _MAX_MAP_SIDE)
    segments, detections = scene.segments, None
    if scene.detections is not None:
        detections = sure_detections(scene.detections, detection_threshold)
        if not detections_first:
            detections = merge_detections(segments, detections, merge_iou)
        if len(detections) > _MAX_OBJECTS:
            rows = list(range(len(detections)))
            rows = _keep_most_confident(rows, detections.confidence, f"{backend} relates", "detections")
            detections = keep_detections(detections, rows)
    object_map = np.full((-(-height // stride), -(-width // stride)), -1, dtype=np.int64)
    names: tuple[str, ...] = ()
    boxes = np.zeros((0, 4), dtype=np.float32)
    if segments is not None:
        covering = np.full(len(segments), -1)
        if detections_first and detections is not None:
            covering = find_covering(segments, detections, merge_iou)
        names, boxes, object_map = _place_segments(segments, covering, stride, backend)
    if detections is not None:
        names += detections.class_names
        boxes = np.concatenate([boxes, clip_boxes(detections.boxes_xyxy, scene.image_size_hw)])
    return NamedObjects(names, boxes, object_map, stride)


def _place_segments(
    segments: Segments, covering: np.ndarray, stride: int, backend: str
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Names and boxes of the segments that no detection covers, and the map, in which detections come behind them."""
    has_pixels = segments.pixel_counts > 0
    named = [i for i, name in enumerate(segments.class_names) if name and has_pixels[i] and covering[i] < 0]
    kept = _keep_most_confident(named, segments.confidence, f"{backend} relates", "segments")
    new_index = np.append(np.where(covering < 0, -1, len(kept) + covering), -1)  # the last one is read for -1
    new_index[kept] = np.arange(len(kept))
    object_map = new_index[segments.index_map[::stride, ::stride]]
    return tuple(segments.class_names[i] for i in kept), segments.boxes_xyxy[kept], object_map


def _keep_most_confident(rows: list[int], confidence: np.ndarray, who: str, what: str) -> list[int]:
    """At most `_MAX_OBJECTS` of the rows, in order."""
    if len(rows) > _MAX_OBJECTS:
        warnings.warn(f"{who} the {_MAX_OBJECTS} surest of {len(rows):,} {what}.", LeftOutWarning)
        rows = sorted(sorted(rows, key=lambda row: -confidence[row])[:_MAX_OBJECTS])
    return rows
