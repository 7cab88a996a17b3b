"""Findings in an order that a reader can rely on: by name, equal names from left to right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from verbalizers.core.merging import keep_detections, keep_segments
from verbalizers.core.structures import Detections, Relations, Scene, Segments
from verbalizers.core.words import strip_coco_suffixes

__all__ = ["order_finding", "order_scene"]


def order_scene(scene: Scene) -> Scene:
    """The scene with its segments, detections and relations in order (:func:`order_finding`)."""
    segments, detections, relations = map(order_finding, (scene.segments, scene.detections, scene.relations))
    return replace(scene, segments=segments, detections=detections, relations=relations)


def order_finding(finding: Any) -> Any:
    """Things by name, equal names from left to right; relations by their subjects, of each the surest first.

    Args:
        finding: Segments, Detections or Relations; anything else is given back as it is.
    """
    if isinstance(finding, Segments):
        return keep_segments(finding, _order(finding.class_names, finding.boxes_xyxy))
    if isinstance(finding, Detections):
        return keep_detections(finding, _order(finding.class_names, finding.boxes_xyxy))
    if isinstance(finding, Relations):
        return _order_relations(finding)
    return finding


def _order(names: Sequence[str], boxes_xyxy: np.ndarray | None) -> list[int]:
    """Rows, by name without COCO's markers and regardless of case, then by left and upper edge."""
    corners = [()] * len(names) if boxes_xyxy is None else boxes_xyxy[:, :2].tolist()
    keys = [(strip_coco_suffixes(name).casefold(), *corner) for name, corner in zip(names, corners, strict=True)]
    return sorted(range(len(keys)), key=keys.__getitem__)


def _order_relations(relations: Relations) -> Relations:
    objects, boxes = _order(relations.object_names, relations.object_boxes_xyxy), relations.object_boxes_xyxy
    place = np.argsort(np.array(objects, dtype=np.int64))  # of each object, in the new order
    subjects, targets = place[relations.subject_indices], place[relations.object_indices]
    rows = np.lexsort((targets, -relations.confidence, subjects))
    return Relations(
        object_names=tuple(relations.object_names[index] for index in objects),
        subject_indices=subjects[rows],
        object_indices=targets[rows],
        predicates=tuple(relations.predicates[row] for row in rows),
        confidence=relations.confidence[rows],
        object_boxes_xyxy=None if boxes is None else boxes[objects],
    )
