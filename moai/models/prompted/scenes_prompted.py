"""Scenes as text for a prompt: the sentences that MoAI reads, or short structured lines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from verbalizers.core.boxes import clip_boxes, normalize_boxes, quads_to_boxes
from verbalizers.core.merging import merge_scene
from verbalizers.core.ordering import keep_spoken, name_carriers, number_scene, order_scene
from verbalizers.core.sentences import verbalize_finding, verbalize_scene
from verbalizers.core.structures import SCENE_FIELDS, Relations, Scene
from verbalizers.core.words import WordSettings, number_duplicates, strip_coco_suffixes, without_control_characters

__all__ = ["STYLES", "describe_compactly", "encode_scenes"]

#: How a scene is written into a prompt.
STYLES = ("sentences", "compact")


def encode_scenes(
    scenes: Sequence[Scene | None],
    words: WordSettings | None = None,
    kinds: Iterable[str] | None = None,
    style: str = "sentences",
) -> dict[str, Any]:
    """What a :class:`~moai.models.prompted.processing_prompted.PromptedProcessor` takes beside the conversations.

    Args:
        scenes: One per conversation; None = nobody looked.
        words: What is worth saying; None = the defaults.
        kinds: Which kinds are said, in this order; None = all that the scene holds.
        style: One of :data:`STYLES`.

    Returns:
        ``context``, a text per conversation, None where nobody looked. Text lines in it are quoted: a sign that reads
        like a finding is not one.

    Raises:
        ValueError: The style is unknown.
    """
    if style not in STYLES:
        raise ValueError(f"`style` must be one of {STYLES}, got {style!r}.")
    words = words or WordSettings()
    if style == "compact":
        return {"context": [None if scene is None else describe_compactly(scene, words, kinds) for scene in scenes]}
    return {
        "context": [None if scene is None else verbalize_scene(scene, kinds, settings=words) for scene in scenes],
    }


def describe_compactly(scene: Scene, words: WordSettings, kinds: Iterable[str] | None = None) -> str:
    """A scene as short lines: counts, boxes, relations, text lines, then a sentence of each further kind.

        objects: 2 car, 1 sign
        boxes: car 0.02 0.37 0.97 0.97; car 0.10 0.40 0.22 0.58; sign 0.43 0.44 0.78 0.66
        relations: car (#1) on road
        text: "PLEASE"

    Boxes are left, top, right and bottom as fractions of the image. What was not looked for has no line; what was
    looked for and not found is "none".

    Args:
        scene: What was found.
        words: Thresholds and counts.
        kinds: Which kinds are said; None = all.
    """
    chosen = [*SCENE_FIELDS, *sorted(scene.findings)] if kinds is None else list(kinds)
    if {"segmentation", "detection"} <= set(chosen):
        scene = merge_scene(scene, words)
    spoken = keep_spoken(scene, chosen, words)
    told = number_scene(order_scene(spoken)) if words.order_by_name else spoken
    lines = []
    if told.segments is not None or told.detections is not None:
        objects = _list_objects(told)
        counts = Counter(name for name, _ in _list_objects(order_scene(spoken) if words.order_by_name else spoken))
        lines.append(_line("objects", ", ", (f"{number} {name}" for name, number in counts.items())))
        if objects:
            lines.append(_line("boxes", "; ", (f"{name} {box}" for name, box in objects)))
    if told.relations is not None:
        lines.append(_line("relations", "; ", _list_relations(told.relations, words)))
    if told.text_lines is not None:
        lines.append(_line("text", ", ", _list_texts(told, words)))
    for kind in chosen:
        if kind not in SCENE_FIELDS and kind in scene.findings:
            lines.append(verbalize_finding(scene.findings[kind], words, kind=kind, scene=scene))
    return "\n".join(line for line in lines if line)


def _line(label: str, separator: str, items: Iterable[str]) -> str:
    return f"{label}: " + (separator.join(items) or "none")


def _list_objects(scene: Scene) -> list[tuple[str, str]]:
    """Name and box of every segment and detection."""
    found: list[tuple[str, Any]] = []
    if (segments := scene.segments) is not None:
        found += zip(map(strip_coco_suffixes, segments.class_names), segments.boxes_xyxy, strict=True)
    if (detections := scene.detections) is not None:
        found += zip(detections.class_names, detections.boxes_xyxy, strict=True)
    boxes = _format_boxes([box for _, box in found], scene.image_size_hw)
    return [(without_control_characters(name), box) for (name, _), box in zip(found, boxes, strict=True)]


def _format_boxes(boxes_xyxy: Any, image_size_hw: tuple[int, int]) -> list[str]:
    boxes = normalize_boxes(clip_boxes(boxes_xyxy, image_size_hw), image_size_hw)
    return [" ".join(f"{side:.2f}" for side in box) for box in boxes]


def _list_relations(relations: Relations, words: WordSettings) -> list[str]:
    names = number_duplicates([without_control_characters(strip_coco_suffixes(n)) for n in relations.object_names])
    rows = zip(
        -relations.confidence, relations.subject_indices, relations.predicates, relations.object_indices, strict=True
    )
    best = sorted(enumerate(rows), key=lambda row: row[1][0])  # stable: equal ones stay in the given order
    said = [
        (place, f"{names[subject]} {predicate} {names[object_]}")
        for place, (negative, subject, predicate, object_) in best
        if -negative >= words.relation_threshold and relations.object_names[subject] and relations.object_names[object_]
    ][: words.max_relations]
    return [text for _, text in (sorted(said) if words.order_by_name else said)]


def _list_texts(scene: Scene, words: WordSettings) -> list[str]:
    """Text lines as JSON strings: what a sign says can end neither its quotes nor its line."""
    text_lines = scene.text_lines
    is_sure = text_lines.confidence >= np.float32(words.text_threshold)
    said = [json.dumps(text, ensure_ascii=False) for text in text_lines.texts]
    if words.locate_text:
        boxes = _format_boxes(quads_to_boxes(text_lines.quads), scene.image_size_hw)
        on = [f" on {without_control_characters(name)}" if name else "" for name in name_carriers(scene)]
        said = [f"{text} {box}{what}" for text, box, what in zip(said, boxes, on, strict=True)]
    rows = zip(text_lines.texts, said, is_sure, strict=True)
    return [line for text, line, sure in rows if sure and without_control_characters(text).strip()]
