"""Scenes as Prismer reads them: maps of classes, instances, texts and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from verbalizers.core.boxes import clip_boxes
from verbalizers.core.label_map import LabelMap
from verbalizers.core.merging import sure_detections
from verbalizers.core.structures import Detections, Scene, Segments, TextLines
from verbalizers.core.vocabularies import COCO_PANOPTIC_NAMES
from verbalizers.core.words import WordSettings, choose_most_confident, strip_coco_suffixes

from .configuration_prismer import DENSE_EXPERTS, EXPERTS
from .expert_maps import BACKGROUND, ExpertMaps

__all__ = ["KIND_OF_EXPERT", "encode_scenes", "order_boxes"]

#: Who looks for what an expert's map holds.
KIND_OF_EXPERT = {
    "depth": "depth",
    "normal": "normal",
    "edge": "edge",
    "seg": "segmentation",
    "obj_detection": "detection",
    "ocr_detection": "ocr",
}


def encode_scenes(
    scenes: Sequence[Scene | None],
    words: WordSettings | None = None,
    kinds: Sequence[str] | None = None,
    experts: Sequence[str] = EXPERTS,
) -> dict[str, list[Any]]:
    """What a :class:`~moai.models.prismer.processing_prismer.PrismerProcessor` takes beside images and texts.

    Ids of classes are COCO's places in :data:`COCO_PANOPTIC_NAMES`, other classes follow; instances and texts are
    numbered in the order in which they were found. A map holds 255 of them at most, those of highest confidence.

    Args:
        scenes: One per text; None = nobody looked.
        words: Thresholds; None = the defaults.
        kinds: Which kinds count; None = all that a scene holds.
        experts: Those that the model reads.

    Returns:
        ``expert_maps``, :class:`.ExpertMaps` or None per scene, and ``auxiliary_text``: what they hold, to be shown.

    Raises:
        ValueError: A finding of depth, normals or edges is no map.
    """
    words = words or WordSettings()
    maps = [None if scene is None else _draw_maps(scene, words, kinds, experts) for scene in scenes]
    return {"expert_maps": maps, "auxiliary_text": [None if found is None else _describe(found) for found in maps]}


def _draw_maps(scene: Scene, words: WordSettings, kinds: Sequence[str] | None, experts: Sequence[str]) -> ExpertMaps:
    chosen = [expert for expert in experts if kinds is None or KIND_OF_EXPERT[expert] in kinds]
    maps: dict[str, torch.Tensor] = {}
    names: dict[str, dict[int, str]] = {}
    for expert in chosen:
        if expert in DENSE_EXPERTS and scene.findings.get(KIND_OF_EXPERT[expert]) is not None:
            maps[expert] = _read_values(scene.findings[KIND_OF_EXPERT[expert]], expert)
    if "seg" in chosen and scene.segments is not None:
        maps["seg"], names["seg"] = _draw_segments(scene.segments)
    if "obj_detection" in chosen and scene.detections is not None:
        depth = scene.findings.get("depth") if kinds is None or "depth" in kinds else None
        depth = None if depth is None else _read_values(depth, "depth")[0]
        maps["obj_detection"], names["obj_detection"] = _draw_instances(scene.detections, depth, words)
    if "ocr_detection" in chosen and scene.text_lines is not None:
        maps["ocr_detection"], names["ocr_detection"] = _draw_texts(scene.text_lines, scene.image_size_hw, words)
    return ExpertMaps(maps, names)


def _read_values(finding: Any, expert: str) -> torch.Tensor:
    """A scene's map as ``(channels, h, w)`` float32."""
    num_channels = DENSE_EXPERTS[expert]
    wanted = "(h, w)" if num_channels == 1 else f"(h, w, {num_channels})"
    if not isinstance(finding, LabelMap):
        raise ValueError(f"expected a LabelMap {wanted} as the scene's {expert!r}, got a {type(finding).__name__}.")
    values = finding.values[..., None] if finding.values.ndim == 2 else finding.values
    if values.shape[2] != num_channels or finding.is_numbers:
        raise ValueError(
            f"expected a map {wanted} of values as the scene's {expert!r}, got {values.dtype} {finding.values.shape}."
        )
    return torch.from_numpy(values.astype(np.float32).transpose(2, 0, 1).copy())


def _draw_segments(segments: Segments) -> tuple[torch.Tensor, dict[int, str]]:
    """``(H, W)`` ids of classes, and their names."""
    ids: dict[str, int] = {}
    coco = {name: index for index, name in enumerate(COCO_PANOPTIC_NAMES)}
    following = len(coco)
    for name in segments.class_names:
        if name and name not in ids:
            ids[name] = coco.get(name, following)
            following += name not in coco
            following += following == BACKGROUND
    table = np.array([*(ids.get(name, BACKGROUND) for name in segments.class_names), BACKGROUND])
    drawn = torch.from_numpy(table[segments.index_map])  # place -1, no segment, is the last
    return drawn, {index: strip_coco_suffixes(name) for name, index in ids.items()}


def _draw_instances(
    detections: Detections, depth: torch.Tensor | None, words: WordSettings
) -> tuple[torch.Tensor, dict[int, str]]:
    """``(H, W)`` instance numbers, and their classes' names."""
    height, width = detections.image_size_hw
    detections, most = sure_detections(detections, words.detection_threshold), min(words.max_predictions, BACKGROUND)
    rows = choose_most_confident(list(range(len(detections))), detections.confidence, most, "detections")
    clipped = clip_boxes(detections.boxes_xyxy[rows], detections.image_size_hw) if rows else np.zeros((0, 4))
    boxes = np.concatenate([np.floor(clipped[:, :2]), np.ceil(clipped[:, 2:])], axis=1).astype(int)
    if depth is not None:
        planes = torch.nn.functional.interpolate(depth[None, None], size=(height, width), mode="nearest-exact")
        depth = planes[0, 0]
    loses_to = order_boxes(boxes, None if depth is None else depth.numpy())
    drawn = np.full((height, width), BACKGROUND, dtype=np.int64)
    for number, (left, top, right, bottom) in enumerate(boxes):
        is_mine = np.ones((max(bottom - top, 0), max(right - left, 0)), dtype=bool)
        for other in np.flatnonzero(loses_to[number]):
            x0, y0, x1, y1 = boxes[other]
            is_mine[max(y0 - top, 0) : max(y1 - top, 0), max(x0 - left, 0) : max(x1 - left, 0)] = False
        drawn[top:bottom, left:right][is_mine] = number
    return torch.from_numpy(drawn), {i: detections.class_names[row] for i, row in enumerate(rows)}


def order_boxes(boxes_xyxy: np.ndarray, depth: np.ndarray | None) -> np.ndarray:
    """Which box stands behind which other, by pairs.

    A box inside another one is in front of it; else the one that is nearer on average. Where nobody measured depth, or
    both are as near, the smaller one is in front. Of two equal boxes the first is.

    Args:
        boxes_xyxy: int ``(N, 4)``.
        depth: ``(H, W)`` float, larger = nearer; None = not measured.

    Returns:
        bool ``(N, N)``: the row's box gives what it shares with the column's box away.
    """
    count = len(boxes_xyxy)
    areas = (boxes_xyxy[:, 2] - boxes_xyxy[:, 0]) * (boxes_xyxy[:, 3] - boxes_xyxy[:, 1])
    means = [0.0 if depth is None else float(depth[y0:y1, x0:x1].mean()) for x0, y0, x1, y1 in boxes_xyxy]
    loses_to = np.zeros((count, count), dtype=bool)
    for first in range(count):
        for second in range(first + 1, count):
            corner = np.maximum(boxes_xyxy[first, :2], boxes_xyxy[second, :2])
            size = np.minimum(boxes_xyxy[first, 2:], boxes_xyxy[second, 2:]) - corner
            if (size <= 0).any():
                continue
            shared = size.prod()
            if shared == areas[first]:
                is_first_in_front = True
            elif shared == areas[second]:
                is_first_in_front = False
            elif means[first] != means[second]:
                is_first_in_front = means[first] > means[second]
            else:
                is_first_in_front = areas[first] <= areas[second]
            loses_to[(second, first) if is_first_in_front else (first, second)] = True
    return loses_to


def _draw_texts(
    text_lines: TextLines, image_size_hw: tuple[int, int], words: WordSettings
) -> tuple[torch.Tensor, dict[int, str]]:
    """``(H, W)`` numbers of lines of text, and what they say in lower case."""
    height, width = image_size_hw
    rows = [i for i, sure in enumerate(text_lines.confidence) if sure >= words.text_threshold]
    rows = [i for i in rows if text_lines.texts[i].strip()]
    rows = choose_most_confident(rows, text_lines.confidence, min(words.max_predictions, BACKGROUND), "text lines")
    drawn = Image.new("L", (width, height), BACKGROUND)
    for number, row in enumerate(rows):
        corners = [(float(x), float(y)) for x, y in text_lines.quads[row]]
        ImageDraw.Draw(drawn).polygon(corners, fill=number)
    return torch.from_numpy(np.array(drawn)).long(), {i: text_lines.texts[row].lower() for i, row in enumerate(rows)}


def _describe(found: ExpertMaps) -> str:
    """What the maps hold, a kind per sentence: the model reads no words."""
    sentences = []
    for expert in found.maps:
        said = list(found.names.get(expert, {}).values())
        sentences.append(f"{KIND_OF_EXPERT[expert]}: {', '.join(said)}" if said else KIND_OF_EXPERT[expert])
    return "; ".join(sentences)
