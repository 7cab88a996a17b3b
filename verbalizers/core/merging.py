"""Removal of detections that a segmentation already contains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from verbalizers.core.boxes import box_iou, clip_boxes
from verbalizers.core.structures import Detections, Scene, Segments
from verbalizers.core.vocabulary_matching import means_the_same

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
    overlaps = box_iou(clip_boxes(detections.boxes_xyxy, detections.image_size_hw), segments.boxes_xyxy)  # (N, M)
    kept = [
        row
        for row, name in enumerate(detections.class_names)
        if not any(
            means_the_same(name, segments.class_names[column]) for column in np.flatnonzero(overlaps[row] >= min_iou)
        )
    ]
    if len(kept) == len(detections):
        return detections
    names = tuple(detections.class_names[row] for row in kept)
    boxes, confidence = detections.boxes_xyxy[kept], detections.confidence[kept]
    return Detections(boxes, names, confidence, detections.image_size_hw)


def merge_scene(scene: Scene, min_iou: float) -> Scene:
    """The scene without the detections that its segments repeat; see `merge_detections`."""
    detections = merge_detections(scene.segments, scene.detections, min_iou)
    return scene if detections is scene.detections else replace(scene, detections=detections)
