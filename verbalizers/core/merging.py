"""Removal of detections that a segmentation already contains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from verbalizers.core.boxes import box_iou, clip_boxes
from verbalizers.core.structures import Detections, Scene, Segments
from verbalizers.core.vocabulary_matching import means_the_same

#: Detections that are compared with all segments at once.
_CHUNK = 256

__all__ = ["merge_detections", "merge_scene"]


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
    kept = [row for row in range(len(detections)) if row not in merged]
    names = tuple(detections.class_names[row] for row in kept)
    boxes, confidence = detections.boxes_xyxy[kept], detections.confidence[kept]
    return Detections(boxes, names, confidence, detections.image_size_hw)


def merge_scene(scene: Scene, min_iou: float) -> Scene:
    """The scene without the detections that its segments repeat; see `merge_detections`."""
    detections = merge_detections(scene.segments, scene.detections, min_iou)
    return scene if detections is scene.detections else replace(scene, detections=detections)
