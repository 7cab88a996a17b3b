"""Findings in an order that a reader can rely on, and one name for one thing: by name, equal names from left to right,
numbered alike in every sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from verbalizers.core.boxes import box_iou, clip_boxes, quads_to_boxes
from verbalizers.core.merging import keep_detections, keep_segments, sure_detections
from verbalizers.core.structures import SCENE_FIELDS, Detections, Relations, Scene, Segments
from verbalizers.core.words import WordSettings, number_duplicates, strip_coco_suffixes

__all__ = ["keep_spoken", "name_carriers", "number_scene", "order_finding", "order_scene"]

#: Least overlap of a thing's box and that of an object of a relation by its name, from which both are one.
_SAME_IOU = 0.5


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


def keep_spoken(scene: Scene, kinds: Iterable[str], settings: WordSettings) -> Scene:
    """What is said of a scene's segments and detections: of the kinds named, the named ones, and sure detections."""
    kinds = set(kinds)
    scene = replace(scene, **{field: None for kind, field in SCENE_FIELDS.items() if kind not in kinds})
    segments, detections = scene.segments, scene.detections
    if segments is not None:
        counts = segments.pixel_counts
        segments = keep_segments(segments, [k for k, name in enumerate(segments.class_names) if name and counts[k]])
    if detections is not None:
        detections = sure_detections(detections, settings.detection_threshold)
    return replace(scene, segments=segments, detections=detections)


def number_scene(scene: Scene) -> Scene:
    """The scene in which things of equal names are numbered from left to right, `sign (#1)`, in relations too.

    Args:
        scene: Of segments and detections what is said (:func:`keep_spoken`). An object of relations is the thing of
            its name that overlaps it most; one that overlaps none is numbered after them. Without boxes they keep their
            names.
    """
    names, boxes = _list_things(scene)
    segments, detections, relations = scene.segments, scene.detections, scene.relations
    things: list[int] = []  # of each object of the relations
    if relations is not None and relations.object_boxes_xyxy is not None and names:
        things, others = _find_things(relations, names, boxes)
        names += others  # last of their name, since no sentence tells where they are
    order = [*_order(names[: len(boxes)], boxes), *range(len(boxes), len(names))]
    for row, name in zip(order, number_duplicates([names[row] for row in order]), strict=True):
        names[row] = name
    num_segments = 0 if segments is None else len(segments)
    if segments is not None:
        segments = replace(segments, class_names=tuple(names[:num_segments]))
    if detections is not None:
        detections = replace(detections, class_names=tuple(names[num_segments : len(boxes)]))
    if things:
        relations = replace(relations, object_names=tuple(names[k] if k >= 0 else "" for k in things))
    return replace(scene, segments=segments, detections=detections, relations=relations)


def name_carriers(scene: Scene) -> list[str]:
    """What each line of text stands on.

    Args:
        scene: Lines of text, and of segments and detections what is said (:func:`keep_spoken`).

    Returns:
        Per line the name of the smallest detection around its centre, else of the segment there; "" = neither.
    """
    if scene.text_lines is None:
        return []
    names, boxes = (), np.zeros((0, 4), np.float32)
    if scene.detections is not None:
        names, boxes = scene.detections.class_names, clip_boxes(scene.detections.boxes_xyxy, scene.image_size_hw)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    carriers = []
    for x0, y0, x1, y1 in clip_boxes(quads_to_boxes(scene.text_lines.quads), scene.image_size_hw):
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        around = np.flatnonzero((boxes[:, 0] <= x) & (x <= boxes[:, 2]) & (boxes[:, 1] <= y) & (y <= boxes[:, 3]))
        carriers.append(names[around[areas[around].argmin()]] if around.size else _segment_at(scene, int(y), int(x)))
    return carriers


def _list_things(scene: Scene) -> tuple[list[str], np.ndarray]:
    """Names, without COCO's markers, and boxes of segments and detections."""
    names, boxes = [], [np.zeros((0, 4), np.float32)]
    for found in (scene.segments, scene.detections):
        if found is not None:
            names += map(strip_coco_suffixes, found.class_names)
            boxes.append(found.boxes_xyxy)
    return names, np.concatenate(boxes)


def _find_things(relations: Relations, names: list[str], boxes: np.ndarray) -> tuple[list[int], list[str]]:
    """Which thing each object of the relations is, -1 = its class is unknown, and the names of those that are none of
    the things, counted behind them.
    """
    overlaps = box_iou(relations.object_boxes_xyxy, boxes)  # (objects, things)
    of_object = [strip_coco_suffixes(name) for name in relations.object_names]
    for row, name in enumerate(of_object):
        overlaps[row, [other != name for other in names]] = 0
    things = [-1] * len(of_object)
    while overlaps.size and overlaps.max() >= _SAME_IOU:  # one thing is one object
        row, thing = (int(place) for place in np.unravel_index(overlaps.argmax(), overlaps.shape))
        things[row] = thing
        overlaps[row], overlaps[:, thing] = 0, 0
    others = [row for row, thing in enumerate(things) if thing < 0 and of_object[row]]
    for place, row in enumerate(others):
        things[row] = len(names) + place
    return things, [of_object[row] for row in others]


def _segment_at(scene: Scene, y: int, x: int) -> str:
    """Name of the segment at a pixel."""
    if scene.segments is None:
        return ""
    height, width = scene.segments.index_map.shape
    row = int(scene.segments.index_map[min(y, height - 1), min(x, width - 1)])
    return strip_coco_suffixes(scene.segments.class_names[row]) if row >= 0 else ""


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
