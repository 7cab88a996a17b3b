"""From findings to sentences: the four kinds' own, and those of whole scenes. Pure: the same scene, the same text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from verbalizers.core.boxes import clip_boxes, format_box, normalize_boxes, quads_to_boxes
from verbalizers.core.label_map import LabelMap
from verbalizers.core.merging import merge_scene
from verbalizers.core.ordering import keep_spoken, name_carriers, number_scene, order_finding, order_scene
from verbalizers.core.registry import find_words
from verbalizers.core.structures import SCENE_FIELDS, Detections, Relations, Scene, Segments, TextLines
from verbalizers.core.valid_text import make_valid
from verbalizers.core.words import (
    BOXES_OPENING,
    RELATIONS_OPENING,
    TEXTS_OPENING,
    WordSettings,
    choose_most_confident,
    join_sentences,
    list_sentence,
    number_duplicates,
    quote,
    strip_coco_suffixes,
    without_control_characters,
)

__all__ = [
    "verbalize_detections",
    "verbalize_finding",
    "verbalize_relations",
    "verbalize_scene",
    "verbalize_segments",
    "verbalize_text_lines",
]


def verbalize_finding(
    finding: Any,
    settings: WordSettings | None = None,
    compat: bool = False,
    kind: str | None = None,
    scene: Scene | None = None,
) -> str:
    """One finding as a sentence: by its kind's registered function, else by its type.

    Args:
        finding: one of the structures, a sentence, a registered kind's finding, a map without words of its kind ("") or
            None ("").
        settings: what is worth saying.
        compat: as the release does.
        kind: the finding's kind, for which `register_words` may have registered a function.
        scene: all findings about the image, for text that uses other findings too.

    Raises:
        ValueError: the finding is of a type that has no words, or the image's size is asked for and not given.
        ImportError: the words are a plug-in's that cannot be imported.
    """
    settings = settings or WordSettings()
    if settings.order_by_name and not compat:
        finding = order_finding(finding)
    spoken = None
    if isinstance(finding, TextLines) and settings.locate_text and not compat:
        if scene is None:
            raise ValueError("`locate_text` expected the image's size, got a finding alone. Give the `scene` too.")
        spoken = replace(_prepare(scene, SCENE_FIELDS, settings), text_lines=finding)
    return _say(finding, settings, compat, kind, scene, spoken)


def _say(
    finding: Any, settings: WordSettings, compat: bool, kind: str | None, scene: Scene | None, spoken: Scene | None
) -> str:
    """A finding as it stands.

    Args:
        finding: See :func:`verbalize_finding`.
        settings: Likewise.
        compat: Likewise.
        kind: Likewise.
        scene: What further kinds' words are given.
        spoken: Names and places of the things that the other sentences tell, for lines of text that are located.
    """
    if finding is None:
        return ""
    words = find_words(kind) if kind is not None and scene is not None and kind not in SCENE_FIELDS else None
    if words is not None:
        return make_valid(words(finding, scene, settings))
    if isinstance(finding, str):
        return make_valid(finding)
    if isinstance(finding, LabelMap):
        return ""  # for models that read maps, and for other verbalizers
    if isinstance(finding, Segments):
        return verbalize_segments(finding, compat, settings.max_predictions)
    if isinstance(finding, Detections):
        return verbalize_detections(finding, settings.detection_threshold, compat, settings.max_predictions)
    if isinstance(finding, Relations):
        as_given = settings.order_by_name and not compat
        return verbalize_relations(finding, settings.relation_threshold, settings.max_relations, compat, as_given)
    if isinstance(finding, TextLines):
        size, carriers = (None, None) if spoken is None else (spoken.image_size_hw, name_carriers(spoken))
        return verbalize_text_lines(
            finding, settings.text_threshold, compat, settings.max_predictions, settings.quote_text, size, carriers
        )
    raise ValueError(
        f"expected Segments, Detections, Relations, TextLines or a sentence, got {type(finding).__name__}. "
        "A verbalizer of a new kind answers with one of these or registers its words with register_words."
    )


def _prepare(scene: Scene, kinds: Iterable[str], settings: WordSettings) -> Scene:
    """What is said of the kinds named, in order and numbered where the settings say so."""
    spoken = keep_spoken(scene, kinds, settings)
    return number_scene(order_scene(spoken)) if settings.order_by_name else spoken


def verbalize_scene(
    scene: Scene,
    kinds: Iterable[str] | None = None,
    compat: bool = False,
    settings: WordSettings | None = None,
) -> str:
    """A scene as text: one sentence per kind, joined with one space.

    Args:
        scene: what was found.
        kinds: which kinds are included, in this order; None = the four, then the scene's further findings by
            name.
        compat: the release's exact text, its blanks, gaps and slips included; False = ours, which say the
            same where the release is right.
        settings: what is worth saying. Where segments and detections are both included, what was found twice is
            once (`WordSettings.merge_iou`), except with `compat`.

    Raises:
        ValueError: a kind is neither one of the four nor among the scene's findings.
    """
    names = [*SCENE_FIELDS, *sorted(scene.findings)] if kinds is None else list(kinds)
    settings = settings or WordSettings()
    if not compat and {"segmentation", "detection"} <= set(names):
        scene = merge_scene(scene, settings)
    spoken = scene if compat else _prepare(scene, names, settings)
    located = spoken if settings.locate_text and not compat else None
    sentences = []
    for kind in names:
        if kind not in SCENE_FIELDS and kind not in scene.findings and kind not in scene.failures:
            known = [*SCENE_FIELDS, *sorted(scene.findings)]
            raise ValueError(f"unknown kind {kind!r}, expected some of {known}.")
        finding = getattr(spoken, SCENE_FIELDS[kind]) if kind in SCENE_FIELDS else scene.findings.get(kind)
        sentences.append(_say(finding, settings, compat, kind, scene, located))
    return join_sentences(sentences, compat)


def verbalize_segments(
    segments: Segments | None, compat: bool = False, max_predictions: int = WordSettings.max_predictions
) -> str:
    """Segments as text: `The image includes bounding box coordinates and their objects: [..] name.`.

    Args:
        segments: None gives "".
        compat: as the release does. It takes the boxes in ascending id order whatever the order of the
            names, and gives no text at all when an id has no pixels or a class is unknown; ours gives each
            name its own box and leaves out only that segment.
        max_predictions: how many are said at most; with `compat` all are.
    """
    if segments is None:
        return ""
    if compat:
        return _verbalize_as_released(segments)
    boxes = normalize_boxes(clip_boxes(segments.boxes_xyxy, segments.image_size_hw), segments.image_size_hw)
    named = [row for row, name in enumerate(segments.class_names) if name and segments.pixel_counts[row]]
    said = choose_most_confident(named, segments.confidence, max_predictions, "segments")
    items = [f"{format_box(boxes[row])} {strip_coco_suffixes(segments.class_names[row])}" for row in said]
    return list_sentence(BOXES_OPENING, items)


def _verbalize_as_released(segments: Segments) -> str:
    height, width = segments.image_size_hw
    present = [int(i) for i in np.unique(segments.panoptic_map) if i > 0]
    if len(present) < len(segments) or not all(segments.class_names):
        return ""
    everything = Segments(segments.panoptic_map, present, [""] * len(present), np.ones(len(present)))
    # The release multiplies by the float32 reciprocal; dividing could round a tie the other way.
    scale = np.array([1 / width, 1 / height, 1 / width, 1 / height], dtype=np.float32)
    boxes = (everything.boxes_xyxy * scale)[: len(segments)]
    items = [
        f"{format_box(box)} {strip_coco_suffixes(name)}" for name, box in zip(segments.class_names, boxes, strict=True)
    ]
    return list_sentence(BOXES_OPENING, items)


def verbalize_detections(
    detections: Detections | None,
    threshold: float = WordSettings.detection_threshold,
    compat: bool = False,
    max_predictions: int = WordSettings.max_predictions,
) -> str:
    """Same sentence form as the segments, boxes in the order given.

    Args:
        detections: None gives "".
        threshold: lowest confidence in the text.
        compat: as the release does, boxes outside the image and "-0.00" included; ours keeps them
            inside.
        max_predictions: how many are said at most; with `compat` all are.
    """
    if detections is None:
        return ""
    boxes = detections.boxes_xyxy if compat else clip_boxes(detections.boxes_xyxy, detections.image_size_hw)
    normalized = normalize_boxes(boxes, detections.image_size_hw)
    is_kept = detections.confidence >= np.float32(threshold)
    said = [row for row, name in enumerate(detections.class_names) if is_kept[row] and name]
    if not compat:
        said = choose_most_confident(said, detections.confidence, max_predictions, "detections")
    return list_sentence(
        BOXES_OPENING, [f"{format_box(normalized[row])} {detections.class_names[row]}" for row in said]
    )


def verbalize_relations(
    relations: Relations | None,
    threshold: float = WordSettings.relation_threshold,
    max_relations: int = WordSettings.max_relations,
    compat: bool = False,
    as_given: bool = False,
) -> str:
    """Relations as text: `The image includes relationships between objects: A is on B, and C is holding D.`.

    Objects that share a name are numbered: `person (#2)`.

    Args:
        relations: None gives "".
        threshold: lowest confidence in the text.
        max_relations: how many are included at most, those of highest confidence.
        compat: choose and order as the release does. It gives no text when there are fewer relations than
            min(10, objects), and its order is numpy's partition order; ours gives them all, highest confidence first.
        as_given: in the order given, in place of the highest confidence first.
    """
    if relations is None:
        return ""
    choose = _choose_as_released if compat else _choose_most_confident
    names = number_duplicates([strip_coco_suffixes(name) for name in relations.object_names])
    items = []
    chosen = choose(relations, threshold, max_relations)
    for index in sorted(chosen) if as_given else chosen:
        subject, object_ = int(relations.subject_indices[index]), int(relations.object_indices[index])
        if relations.object_names[subject] and relations.object_names[object_]:
            items.append(f"{names[subject]} is {relations.predicates[index]} {names[object_]}")
    return list_sentence(RELATIONS_OPENING, items)


def _choose_most_confident(relations: Relations, threshold: float, max_relations: int) -> list[int]:
    named = [bool(name) for name in relations.object_names]
    is_known = [named[s] and named[o] for s, o in zip(relations.subject_indices, relations.object_indices, strict=True)]
    order = np.argsort(-relations.confidence, kind="stable")
    kept = [int(i) for i in order if relations.confidence[i] >= np.float32(threshold) and is_known[i]]
    return kept[:max_relations]


def _choose_as_released(relations: Relations, threshold: float, max_relations: int) -> list[int]:
    wanted = min(max_relations, len(relations.object_names))
    if len(relations) == 0 or wanted > len(relations):
        return []
    # The release filters argpartition's indices by partition's values, which numpy does not promise to order
    # alike: both are needed to give its exact text.
    indices = np.argpartition(relations.confidence, -wanted)[-wanted:]
    scores = np.partition(relations.confidence, -wanted)[-wanted:]
    return [int(i) for i in indices[scores >= np.float32(threshold)]]


def verbalize_text_lines(
    text_lines: TextLines | None,
    threshold: float = WordSettings.text_threshold,
    compat: bool = False,
    max_predictions: int = WordSettings.max_predictions,
    quote_text: bool = WordSettings.quote_text,
    image_size_hw: tuple[int, int] | None = None,
    carriers: Sequence[str] | None = None,
) -> str:
    """Lines of text as a sentence: `The image includes text descriptions: "t1", and "t2".`, lines in the order given.

    Args:
        text_lines: None gives "".
        threshold: lowest confidence in the text.
        compat: leave blank lines and control characters in and quotes out, as the release does.
        max_predictions: how many are said at most; with `compat` all are.
        quote_text: quote each line; see `WordSettings`.
        image_size_hw: height and width of the image in pixels, for lines behind their boxes
            (`WordSettings.locate_text`), as `[0.12, 0.30, 0.45, 0.41] "t1"`; None = lines alone.
        carriers: what each line stands on (`ordering.name_carriers`), said behind it: `"t1" on sign (#2)`; "" =
            nobody knows.
    """
    if text_lines is None:
        return ""
    is_kept = text_lines.confidence >= np.float32(threshold)
    if compat:
        return list_sentence(
            TEXTS_OPENING, [text for text, kept in zip(text_lines.texts, is_kept, strict=True) if kept]
        )
    cleaned = [without_control_characters(text) for text in text_lines.texts]
    said = [row for row, text in enumerate(cleaned) if is_kept[row] and text.strip()]
    said = choose_most_confident(said, text_lines.confidence, max_predictions, "lines of text")
    texts = [quote(cleaned[row]) if quote_text else cleaned[row] for row in said]
    if image_size_hw is not None:
        boxes = normalize_boxes(clip_boxes(quads_to_boxes(text_lines.quads[said]), image_size_hw), image_size_hw)
        texts = [f"{format_box(box)} {text}" for box, text in zip(boxes, texts, strict=True)]
    if carriers is not None:
        on = [f" on {carriers[row]}" if carriers[row] else "" for row in said]
        texts = [text + what for text, what in zip(texts, on, strict=True)]
    return list_sentence(TEXTS_OPENING, texts)
