"""Open-world detection: its words."""

from __future__ import annotations

import numpy as np

from verbalizers.boxes import clip_boxes, format_box, normalize_boxes
from verbalizers.structures import Detections
from verbalizers.words import BOXES_OPENING, WordSettings, list_sentence

__all__ = ["verbalize_detections"]


def verbalize_detections(
    detections: Detections | None, threshold: float = WordSettings.detection_threshold, compat: bool = False
) -> str:
    """Same sentence form as the segments, boxes in the order given.

    Args:
        detections: None gives "".
        threshold: lowest confidence that is said.
        compat: speak as the release does, boxes outside the image and "-0.00" included; ours keeps them
            inside.
    """
    if detections is None:
        return ""
    boxes = detections.boxes_xyxy if compat else clip_boxes(detections.boxes_xyxy, detections.image_size_hw)
    normalized = normalize_boxes(boxes, detections.image_size_hw)
    is_kept = detections.confidence >= np.float32(threshold)
    entries = zip(detections.class_names, normalized, is_kept, strict=True)
    return list_sentence(BOXES_OPENING, [f"{format_box(box)} {name}" for name, box, keep in entries if keep and name])
