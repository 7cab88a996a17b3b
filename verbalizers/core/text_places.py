"""What recognised text is written on: the thing around a line, by the name that the other sentences give it."""

from __future__ import annotations

import numpy as np

from verbalizers.core.boxes import clip_boxes, quads_to_boxes
from verbalizers.core.merging import sure_detections
from verbalizers.core.ordering import order_scene
from verbalizers.core.structures import Scene
from verbalizers.core.words import WordSettings, number_duplicates, strip_coco_suffixes

__all__ = ["name_carriers"]


def name_carriers(scene: Scene, settings: WordSettings) -> list[str]:
    """What each line of text stands on.

    Args:
        scene: what was found, lines of text among it, and what is said of it: segments and detections that are none
            are told of.
        settings: which detections are sure, and the order in which equal names are numbered.

    Returns:
        Per line the name of the smallest detection around its centre, else of the segment there, "" = neither; equal
        names are numbered, as `sign (#2)`.
    """
    if scene.text_lines is None:
        return []
    if settings.order_by_name:
        scene = order_scene(scene)
    segments, names = scene.segments, []
    rows: list[int] = []  # of the segments that are said
    if segments is not None:
        rows = [row for row, name in enumerate(segments.class_names) if name and segments.pixel_counts[row]]
        names += [strip_coco_suffixes(segments.class_names[row]) for row in rows]
    boxes = np.zeros((0, 4), np.float32)
    if scene.detections is not None:
        said = sure_detections(scene.detections, settings.detection_threshold)
        names += said.class_names
        boxes = clip_boxes(said.boxes_xyxy, said.image_size_hw)
    numbered = number_duplicates(names)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    carriers = []
    for x0, y0, x1, y1 in clip_boxes(quads_to_boxes(scene.text_lines.quads), scene.image_size_hw):
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        around = np.flatnonzero((boxes[:, 0] <= x) & (x <= boxes[:, 2]) & (boxes[:, 1] <= y) & (y <= boxes[:, 3]))
        if around.size:
            carriers.append(numbered[len(rows) + around[areas[around].argmin()]])
        else:
            carriers.append(_name_at(scene, rows, numbered, int(y), int(x)))
    return carriers


def _name_at(scene: Scene, rows: list[int], numbered: list[str], y: int, x: int) -> str:
    """Of the segment at a pixel."""
    if scene.segments is None:
        return ""
    height, width = scene.segments.index_map.shape
    row = int(scene.segments.index_map[min(y, height - 1), min(x, width - 1)])
    return numbered[rows.index(row)] if row in rows else ""
