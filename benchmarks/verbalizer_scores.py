"""How well verbalizers find what stands in test scenes.

    python -m benchmarks.verbalizer_scores --model moai-nano --scenes 1000 --json scores.json
    python -m benchmarks.verbalizer_scores --model moai-nano --kind ocr --set shortest_side=736
    python -m benchmarks.verbalizer_scores --relations --scenes 1000
    python -m benchmarks.verbalizer_scores --relations --model moai-nano --scenes 200
    python -m benchmarks.verbalizer_scores --names --model moai-nano --scenes 200

The first command measures a checkpoint's verbalizers: panoptic quality, box AP50, relation recall@20 and read lines.
Panoptic quality and average precision are torchmetrics' (average precision on pycocotools). `--relations` tells recall
and precision of scene graphs per predicate that geometry shows: of `scene_graph/geometric` on the true segments and
boxes, which measures its geometry alone; with a model on what its segmenter and detector find, beside its own scene
graph; with `--boxes` on the true boxes of things alone, as a detector of photographs would find them. Scenes say
"driving on" where geometry can only say "on": narrower predicates count as what they look like (:data:`SEEN_AS`), those
of people are told of boxes alone, the others are not asked for. "beside" counts in both directions.

`--names` tells what a checkpoint's words make of segments and detections together: how many things they name where
they stand, how many of those that they name stand there, and of how many names the count is right; where both see one
thing, by the segment's name and by the detection's (`WordSettings.detections_first`), side by side: one as the
checkpoint does, the other with the default `merge_iou`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import yaml
from torchmetrics.detection import MeanAveragePrecision, PanopticQuality
from torchmetrics.text import CharErrorRate

from moai.checkpoints.io.lookup import find_checkpoint
from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from moai.evaluation.intervals import wilson_interval
from moai.evaluation.tables import format_table
from moai.scenes.scenes import Scenes, SceneSample
from moai.scenes.vocabulary import OBJECT_CLASSES, OUTSIDE_NAMES, PANOPTIC_NAMES, STUFF_NAMES
from verbalizers import Scene, WordSettings, parse_scene
from verbalizers.core.boxes import box_iou
from verbalizers.core.geometry import PEOPLES_PREDICATES, PREDICATES
from verbalizers.core.merging import merge_scene, sure_detections
from verbalizers.core.registry import build_verbalizer
from verbalizers.core.structures import SCENE_FIELDS, Detections, Relations, Segments, TextLines
from verbalizers.core.verbalizer import Verbalizer, order_by_use
from verbalizers.core.words import strip_coco_suffixes

__all__ = [
    "SCORES",
    "SEEN_AS",
    "BoxScore",
    "PanopticScore",
    "RelationCounts",
    "NameCounts",
    "RelationScore",
    "TextScore",
    "count_names",
    "count_relations",
    "evaluate_verbalizers",
    "main",
    "names_table",
]

SEEN_AS: dict[str, str] = {
    **{predicate: predicate for predicate in (*PREDICATES, *PEOPLES_PREDICATES)},
    **dict.fromkeys(("standing on", "sitting on", "walking on", "running on", "parked on", "driving on"), "on"),
    "flying over": "over",
}
"""Predicates of scenes and what they look like; hanging and attached are not for geometry."""

RECALL_AT = 20
_NUMBERS = {5: "five", 8: "eight"}
MIN_IOU = 0.5
_BATCH = 8


class PanopticScore:
    """Panoptic quality over the panoptic names that occur; pixels of other names are void.

    Names that the truth does not know count as nothing found.
    """

    kind = "segmentation"

    def __init__(self) -> None:
        stuff = {PANOPTIC_NAMES.index(name) for name in STUFF_NAMES}
        things = set(range(len(PANOPTIC_NAMES))) - stuff
        self.metric = PanopticQuality(things, stuff, True, return_sq_and_rq=True, return_per_class=True)
        self.num_things = len(things)
        self.seen: set[int] = set()

    def update(self, truth: SceneSample, found: Segments) -> None:
        """Count one scene."""
        wanted = _category_map(truth.truth.segments)
        self.seen.update(np.unique(wanted[..., 0][wanted[..., 0] >= 0]).tolist())
        self.metric.update(torch.from_numpy(_category_map(found))[None], torch.from_numpy(wanted)[None])

    def compute(self) -> dict[str, float]:
        """Means over names: panoptic, segmentation and recognition quality; panoptic also for things and stuff."""
        values = self.metric.compute().reshape(-1, 3).numpy()  # one row per name, things first
        present = np.array([index in self.seen for index in [*self._order()]])
        things = np.arange(len(values)) < self.num_things
        names = ("pq", "sq", "rq")
        result = {name: float(values[present, column].mean()) for column, name in enumerate(names)}
        result["pq_things"] = float(values[present & things, 0].mean())
        result["pq_stuff"] = float(values[present & ~things, 0].mean())
        return result

    def _order(self) -> Iterator[int]:
        yield from sorted(self.metric.things)
        yield from sorted(self.metric.stuffs)


def _category_map(segments: Segments) -> np.ndarray:
    """int64 (H, W, 2): category and instance of each pixel, category -1 = none."""
    table = np.full((max(segments.segment_ids, default=0) + 1, 2), (-1, 0), dtype=np.int64)
    for number, (identity, name) in enumerate(zip(segments.segment_ids, segments.class_names, strict=True)):
        plain = strip_coco_suffixes(name)
        if plain in PANOPTIC_NAMES:
            table[identity] = PANOPTIC_NAMES.index(plain), number + 1
    ids = np.where(segments.panoptic_map < len(table), np.maximum(segments.panoptic_map, 0), 0)
    return table[ids]


class BoxScore:
    """Average precision of boxes at IoU 0.5, for all objects and for those outside the panoptic vocabulary."""

    kind = "detection"

    def __init__(self) -> None:
        self.names = tuple(OBJECT_CLASSES)
        self.metric = MeanAveragePrecision(iou_thresholds=[MIN_IOU], class_metrics=True)
        self.metric.warn_on_many_detections = False

    def update(self, truth: SceneSample, found: Detections) -> None:
        """Count one scene."""
        relations = truth.truth.relations
        rows = [i for i, name in enumerate(relations.object_names) if name in OBJECT_CLASSES]
        wanted = {
            "boxes": torch.from_numpy(relations.object_boxes_xyxy[rows]),
            "labels": torch.tensor([self.names.index(relations.object_names[i]) for i in rows], dtype=torch.long),
        }
        known = [i for i, name in enumerate(found.class_names) if name in OBJECT_CLASSES]
        predicted = {
            "boxes": torch.from_numpy(found.boxes_xyxy[known]),
            "labels": torch.tensor([self.names.index(found.class_names[i]) for i in known], dtype=torch.long),
            "scores": torch.from_numpy(found.confidence[known]),
        }
        self.metric.update([predicted], [wanted])

    def compute(self) -> dict[str, float]:
        """Mean over the names that occur, all, inside and outside the panoptic vocabulary."""
        result = self.metric.compute()
        rows = zip(result["classes"].reshape(-1).tolist(), result["map_per_class"].reshape(-1).tolist(), strict=True)
        values = {self.names[index]: value for index, value in rows if value >= 0}  # -1: no such object in the truth
        outside = [value for name, value in values.items() if name in OUTSIDE_NAMES]
        inside = [value for name, value in values.items() if name not in OUTSIDE_NAMES]
        return {
            "ap50": float(np.mean([*outside, *inside])),
            "ap50_outside_panoptic": float(np.mean(outside)) if outside else float("nan"),
            "ap50_inside_panoptic": float(np.mean(inside)) if inside else float("nan"),
        }


class RelationScore:
    """Recall of relations among the 20 surest, as in scene graph detection: boxes of both objects overlap the true
    ones by at least 0.5, the predicate is right, and for triplets both names too. Relations between two things, which
    are few, are counted apart as well.
    """

    kind = "scene_graph"

    def __init__(self) -> None:
        self.asked, self.right_predicates, self.right_triplets, self.found = 0, 0, 0, 0
        self.asked_of_things, self.right_of_things = 0, 0

    def update(self, truth: SceneSample, found: Relations) -> None:
        """Count one scene."""
        wanted = truth.truth.relations
        order = np.argsort(-found.confidence, kind="stable")[:RECALL_AT]
        self.asked += len(wanted)
        self.found += len(found)
        is_thing = np.array([name in OBJECT_CLASSES for name in wanted.object_names], dtype=bool)
        between_things = is_thing[wanted.subject_indices] & is_thing[wanted.object_indices]
        self.asked_of_things += int(between_things.sum())
        if not len(order) or found.object_boxes_xyxy is None:
            return
        overlaps = box_iou(wanted.object_boxes_xyxy, found.object_boxes_xyxy) >= MIN_IOU
        names = np.array([[a == b for b in found.object_names] for a in wanted.object_names])
        for row in range(len(wanted)):
            subject, object_ = wanted.subject_indices[row], wanted.object_indices[row]
            subjects, objects = found.subject_indices[order], found.object_indices[order]
            fits = overlaps[subject, subjects] & overlaps[object_, objects]
            fits &= np.array([found.predicates[i] == wanted.predicates[row] for i in order])
            self.right_predicates += bool(fits.any())
            is_right = bool((fits & names[subject, subjects] & names[object_, objects]).any())
            self.right_triplets += is_right
            self.right_of_things += is_right and bool(between_things[row])

    def compute(self) -> dict[str, float]:
        """Shares of all true relations, and how many there were."""
        return {
            "predicate_recall_at_20": self.right_predicates / max(self.asked, 1),
            "triplet_recall_at_20": self.right_triplets / max(self.asked, 1),
            "triplet_recall_at_20_between_things": self.right_of_things / max(self.asked_of_things, 1),
            "relations": self.asked,
            "relations_between_things": self.asked_of_things,
            "relations_found": self.found,
        }


class TextScore:
    """Lines read letter by letter, case included: of the found lines, the one that overlaps a true line most."""

    kind = "ocr"

    def __init__(self) -> None:
        self.asked, self.right, self.found = 0, 0, 0
        self.errors = CharErrorRate()

    def update(self, truth: SceneSample, found: TextLines) -> None:
        """Count one scene."""
        wanted = truth.truth.text_lines
        self.asked += len(wanted)
        self.found += len(found)
        if not len(wanted):
            return
        boxes = [
            np.concatenate([lines.quads.min(axis=1), lines.quads.max(axis=1)], axis=1) for lines in (wanted, found)
        ]
        overlaps = box_iou(*boxes) if len(found) else np.zeros((len(wanted), 1))
        for row, text in enumerate(wanted.texts):
            best = int(overlaps[row].argmax())
            read = found.texts[best] if overlaps[row, best] > 0 else ""
            self.right += read == text
            self.errors.update([read], [text])

    def compute(self) -> dict[str, float]:
        """Share of true lines read exactly, its 95 % interval, and the character error rate."""
        low, high = wilson_interval(self.right, max(self.asked, 1))
        result = {"exact_match": self.right / max(self.asked, 1), "exact_match_low": low, "exact_match_high": high}
        rate = float(self.errors.compute()) if self.asked else float("nan")
        return {**result, "character_error_rate": rate, "lines": self.asked, "lines_found": self.found}


SCORES = {score.kind: score for score in (PanopticScore, BoxScore, RelationScore, TextScore)}


@dataclass(frozen=True)
class Measured:
    """Scores of one verbalizer.

    Attributes:
        kind: Which intelligence.
        scores: Name -> value.
        num_scenes: How many scenes it saw.
        seconds_per_image: Wall time, painting not counted.
    """

    kind: str
    scores: dict[str, float]
    num_scenes: int
    seconds_per_image: float


def evaluate_verbalizers(
    verbalizers: Sequence[Verbalizer], num_scenes: int, seed: int = 0, image_size: int = 448, split: str = "test"
) -> list[Measured]:
    """Run verbalizers on scenes, one after the other on the same images.

    Args:
        verbalizers: Of kinds among :data:`SCORES`; one that uses others' findings is given them.
        num_scenes: The split's first scenes.
        seed: Of the stream.
        image_size: Height and width of the images in pixels.
        split: Which scenes.

    Raises:
        ValueError: A kind that has no score here.
    """
    for verbalizer in verbalizers:
        if verbalizer.kind not in SCORES:
            raise ValueError(f"expected kinds among {sorted(SCORES)}, got {verbalizer.kind!r}. Leave it out.")
    verbalizers = [verbalizer for group in order_by_use(verbalizers) for verbalizer in group]
    scores = [SCORES[verbalizer.kind]() for verbalizer in verbalizers]
    seconds = [0.0] * len(scores)
    scenes = iter(Scenes(split, seed=seed, image_size=image_size, num_questions=1, length=num_scenes))
    while batch := list(islice(scenes, _BATCH)):
        images = [sample.image for sample in batch]
        known = [Scene(image_size_hw=image.shape[:2]) for image in images]
        for position, (verbalizer, score) in enumerate(zip(verbalizers, scores, strict=True)):
            began = time.perf_counter()
            findings = verbalizer.predict_with(images, known)
            seconds[position] += time.perf_counter() - began
            field = SCENE_FIELDS[verbalizer.kind]
            known = [replace(scene, **{field: finding}) for scene, finding in zip(known, findings, strict=True)]
            for sample, finding in zip(batch, findings, strict=True):
                score.update(sample, finding)
    return [
        Measured(verbalizer.kind, score.compute(), num_scenes, spent / max(num_scenes, 1))
        for verbalizer, score, spent in zip(verbalizers, scores, seconds, strict=True)
    ]


class RelationCounts:
    """Hits and misses of one scene graph.

    Found relations are told apart by whether the truth speaks about their pair at all: of two things that happen to
    stand side by side it says nothing, which makes a relation between them neither right nor wrong.

    Args:
        predicates: those that are counted.

    Attributes:
        asked: predicate -> true relations.
        right: predicate -> those among them that were found.
        judged: predicate -> found relations whose pair the truth speaks about.
        agreed: predicate -> those among them that the truth tells.
        found: predicate -> all found relations.
    """

    def __init__(self, predicates: Sequence[str] = PREDICATES) -> None:
        self.predicates = tuple(predicates)
        self.asked, self.right, self.judged, self.agreed, self.found = (Counter[str]() for _ in range(5))

    def update(self, truth: Relations, found: Relations) -> None:
        """Count one scene.

        Args:
            truth: with boxes.
            found: with boxes; its objects are true ones where boxes overlap by :data:`MIN_IOU` and names agree.
        """
        wanted = {t for t in _triplets(truth, range(len(truth.object_names))) if t[1] in self.predicates}
        pairs = {frozenset((s, o)) for s, _, o in _triplets(truth, range(len(truth.object_names)))}
        told = set(_triplets(found, _match_objects(truth, found)))
        self.asked.update(predicate for _, predicate, _ in wanted)
        self.right.update(predicate for _, predicate, _ in wanted & told)
        known = {t for t in told if frozenset((t[0], t[2])) in pairs}
        self.judged.update(predicate for _, predicate, _ in known)
        self.agreed.update(predicate for _, predicate, _ in known & wanted)
        self.found.update(SEEN_AS.get(predicate, predicate) for predicate in found.predicates)

    def rows(self) -> list[tuple[str, int, int, int, int, int]]:
        """Per predicate, then for all: name, asked, right, judged, agreed, found."""
        columns = (self.asked, self.right, self.judged, self.agreed, self.found)
        rows = [(predicate, *(column[predicate] for column in columns)) for predicate in self.predicates]
        return [*rows, (f"all {_NUMBERS[len(rows)]}", *(sum(row[i] for row in rows) for i in range(1, 6)))]


def _triplets(relations: Relations, numbers: Sequence[int]) -> list[tuple[int, str, int]]:
    """Relations between numbered objects as geometry sees them, "beside" with the smaller number first."""
    triplets = []
    rows = zip(relations.subject_indices, relations.predicates, relations.object_indices, strict=True)
    for subject, predicate, object_ in rows:
        seen, pair = SEEN_AS.get(predicate, predicate), (numbers[subject], numbers[object_])
        if min(pair) >= 0:
            first, second = sorted(pair) if seen == "beside" else pair
            triplets.append((first, seen, second))
    return triplets


def _match_objects(truth: Relations, found: Relations) -> list[int]:
    """For each found object the true one of its name that it overlaps most, or -1."""
    if found.object_boxes_xyxy is None or not len(truth.object_names) or not len(found.object_names):
        return [-1] * len(found.object_names)
    overlaps = box_iou(found.object_boxes_xyxy, truth.object_boxes_xyxy)
    overlaps *= np.array([[a == b for b in truth.object_names] for a in found.object_names])
    return [int(row.argmax()) if row.max() >= MIN_IOU else -1 for row in overlaps]


def count_relations(
    samples: Iterable[SceneSample],
    verbalizers: Sequence[Verbalizer] | None = None,
    has_boxes_only: bool = False,
    words: WordSettings | None = None,
) -> Mapping[str, RelationCounts]:
    """Run scene graphs on scenes.

    Args:
        samples: Scenes with their truth.
        verbalizers: Those of a checkpoint; its scene graph is counted too. None = the truth's segments and detections.
        has_boxes_only: Of the truth the boxes of things; relations to grounds and skies are not asked for.
        words: The checkpoint's, None = the default ones: geometry sees the objects that they name.

    Returns:
        Counts by the scene graph's name.
    """
    words = words or WordSettings()
    geometric = build_verbalizer(
        "scene_graph",
        "geometric",
        detection_threshold=words.detection_threshold,
        merge_iou=words.merge_iou or WordSettings.merge_iou,
        detections_first=words.detections_first,
    )
    others = [verbalizer for verbalizer in verbalizers or () if verbalizer.kind not in ("scene_graph", "ocr")]
    graphs = [geometric, *(v for v in verbalizers or () if v.kind == "scene_graph" and v.backend != geometric.backend)]
    predicates = (*PREDICATES, *PEOPLES_PREDICATES) if has_boxes_only else PREDICATES
    counts = {f"scene_graph/{graph.backend}": RelationCounts(predicates) for graph in graphs}
    samples = iter(samples)
    while batch := list(islice(samples, _BATCH)):
        images = [sample.image for sample in batch] if verbalizers else [_blank(sample) for sample in batch]
        known = [(_keep_boxes if has_boxes_only else _without_relations)(sample.truth) for sample in batch]
        scenes = parse_scene(images, others) if verbalizers else known
        for graph in graphs:
            for sample, found in zip(batch, parse_scene(images, [graph], known=scenes), strict=True):
                if found.relations is not None:
                    truth = _between_things(sample.truth.relations) if has_boxes_only else sample.truth.relations
                    counts[f"scene_graph/{graph.backend}"].update(truth, found.relations)
    return counts


@dataclass
class NameCounts:
    """How often things are named rightly.

    Attributes:
        asked: true things.
        right: those that are named, with a box that overlaps theirs by :data:`MIN_IOU`.
        told: named things.
        names: true names of a scene, summed over scenes.
        counted: those that are told as often as they are there.
    """

    asked: int = 0
    right: int = 0
    told: int = 0
    names: int = 0
    counted: int = 0

    def update(self, truth: Scene, found: Scene, words: WordSettings) -> None:
        """Count one scene, as the words tell it."""
        true_names, true_boxes = _list_things(truth, words)
        names, boxes = _list_things(merge_scene(found, words), words)
        overlaps = box_iou(true_boxes, boxes)
        pairs = sorted(zip(*np.nonzero(overlaps >= MIN_IOU), strict=True), key=lambda pair: -overlaps[pair])
        free = set(range(len(names)))
        matched = set()
        for row, column in pairs:
            if row not in matched and column in free and true_names[row] == names[column]:
                matched.add(row)
                free.discard(column)
        wanted, told = Counter(true_names), Counter(names)
        self.asked, self.told, self.right = (
            self.asked + len(true_names),
            self.told + len(names),
            self.right + len(matched),
        )
        self.names += len(wanted)
        self.counted += sum(told[name] == number for name, number in wanted.items())


def _list_things(scene: Scene, words: WordSettings) -> tuple[list[str], np.ndarray]:
    """Names and boxes, float32 (N, 4), of what is no stuff."""
    names: list[str] = []
    boxes = [np.zeros((0, 4), np.float32)]
    if (segments := scene.segments) is not None:
        plain = [strip_coco_suffixes(name) for name in segments.class_names]
        rows = [i for i, name in enumerate(plain) if name and name not in STUFF_NAMES and segments.pixel_counts[i]]
        names += [plain[row] for row in rows]
        boxes.append(segments.boxes_xyxy[rows])
    if scene.detections is not None:
        detections = sure_detections(scene.detections, words.detection_threshold)
        names += detections.class_names
        boxes.append(detections.boxes_xyxy)
    return names, np.concatenate(boxes)


def count_names(
    samples: Iterable[SceneSample], verbalizers: Sequence[Verbalizer], words: WordSettings
) -> Mapping[str, NameCounts]:
    """Let a segmenter and a detector look at scenes, and count the names in the words.

    Args:
        samples: Scenes with their truth.
        verbalizers: Of them segmentation and detection look.
        words: The checkpoint's.

    Returns:
        Counts by which of the two names what both see.
    """
    looking = [verbalizer for verbalizer in verbalizers if verbalizer.kind in ("segmentation", "detection")]
    ways = {
        name: words
        if words.detections_first == is_first
        else replace(words, detections_first=is_first, merge_iou=WordSettings.merge_iou)
        for name, is_first in (("segment", False), ("detection", True))
    }
    counts = {name: NameCounts() for name in ways}
    samples = iter(samples)
    while batch := list(islice(samples, _BATCH)):
        for sample, found in zip(batch, parse_scene([sample.image for sample in batch], looking), strict=True):
            for name, way in ways.items():
                counts[name].update(sample.truth, found, way)
    return counts


def names_table(counts: Mapping[str, NameCounts]) -> str:
    """One row per way."""
    rows = [
        (
            name,
            c.asked,
            *(f"{a / max(b, 1):.3f}" for a, b in ((c.right, c.asked), (c.right, c.told), (c.counted, c.names))),
        )
        for name, c in counts.items()
    ]
    return format_table(["named by the", "things", "recall", "precision", "counts right"], rows)


def _blank(sample: SceneSample) -> np.ndarray:
    """A blank image: these verbalizers read no pixels."""
    return np.zeros((*sample.truth.image_size_hw, 3), dtype=np.uint8)


def _without_relations(truth: Scene) -> Scene:
    return Scene(truth.image_size_hw, segments=truth.segments, detections=truth.detections)


def _keep_boxes(truth: Scene) -> Scene:
    """What a perfect detector of things would find."""
    names = (*truth.segments.class_names, *truth.detections.class_names)
    boxes = np.concatenate([truth.segments.boxes_xyxy, truth.detections.boxes_xyxy])
    kept = [index for index, name in enumerate(names) if name in OBJECT_CLASSES]
    sure = np.ones(len(kept), np.float32)
    found = Detections(boxes[kept], tuple(names[index] for index in kept), sure, truth.image_size_hw)
    return Scene(truth.image_size_hw, detections=found)


def _between_things(relations: Relations) -> Relations:
    """The relations whose object is a thing."""
    kept = [
        row for row, index in enumerate(relations.object_indices) if relations.object_names[index] in OBJECT_CLASSES
    ]
    return Relations(
        relations.object_names,
        relations.subject_indices[kept],
        relations.object_indices[kept],
        tuple(relations.predicates[row] for row in kept),
        relations.confidence[kept],
        relations.object_boxes_xyxy,
    )


def build_measured(settings: VerbalizerSettings, kinds: Sequence[str]) -> list[Verbalizer]:
    """A checkpoint's verbalizers of some kinds, to be measured.

    Only the detector differs: it is the one for drawings, which scenes are, looks for all objects' names, and average
    precision sees its unsure boxes too.

    Args:
        settings: Of the checkpoint.
        kinds: Which of them.
    """
    built = {verbalizer.kind: verbalizer for verbalizer in settings.build()[0] if verbalizer.kind in kinds}
    if (detector := built.get("detection")) is not None:
        changed = {"vocabulary": tuple(OBJECT_CLASSES), "threshold": 0.05}
        named = {"backend": detector.backend, **detector.settings()}
        named = named.get("drawing", named)
        built["detection"] = build_verbalizer("detection", **(named | changed))
    return list(built.values())


def relations_table(counts: Mapping[str, RelationCounts]) -> str:
    """One row per scene graph and predicate."""
    columns = ["scene graph", "predicate", "true ones", "recall", "found", "in pairs the truth speaks about"]
    rows = []
    for name, counted in counts.items():
        for predicate, asked, right, judged, agreed, found in counted.rows():
            recall, precision = (f"{a / b:.3f}" if b else "-" for a, b in ((right, asked), (agreed, judged)))
            rows.append((name, predicate, asked, recall, found, judged, precision))
    return format_table([*columns, "of them right"], rows, num_left=2)


def markdown_table(measured: Sequence[Measured]) -> str:
    """One row per measure."""
    rows = [
        (result.kind, name, f"{value:.3f}" if isinstance(value, float) else value, result.num_scenes)
        for result in measured
        for name, value in result.scores.items()
    ]
    return format_table(["kind", "measure", "value", "scenes"], rows, num_left=2)


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Measure verbalizers on test scenes.")
    parser.add_argument("--model", help="checkpoint whose verbalizers look")
    parser.add_argument("--relations", action="store_true", help="recall and precision of relations per predicate")
    parser.add_argument("--names", action="store_true", help="with --model: how rightly its words name things")
    parser.add_argument("--boxes", action="store_true", help="with --relations: of the truth the boxes of things alone")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--kind", choices=sorted(SCORES), action="append", help="only this one; may be repeated")
    parser.add_argument("--set", action="append", default=[], help="with one --kind: setting=value of its verbalizer")
    parser.add_argument("--json", type=Path, help="file that receives the numbers")
    chosen = parser.parse_args(arguments)
    if chosen.model is None and not chosen.relations:
        parser.error("expected --model, whose verbalizers are measured, or --relations on the truth")
    if chosen.boxes and (chosen.model is not None or not chosen.relations):
        parser.error("expected --boxes with --relations on the truth, without --model")
    if chosen.names and (chosen.model is None or chosen.relations):
        parser.error("expected --names with --model, without --relations")
    if (chosen.names or chosen.relations) and (chosen.kind or chosen.set or chosen.json):
        parser.error("expected --names or --relations without --kind, --set and --json")
    if chosen.set and len(chosen.kind or ()) != 1:
        parser.error("expected one --kind with --set")
    settings = None if chosen.model is None else VerbalizerSettings.load(find_checkpoint(chosen.model))
    if chosen.relations:
        stream = Scenes(chosen.split, image_size=448, num_questions=1, length=chosen.scenes)
        looking, words = (None, None) if settings is None else (settings.build()[0], settings.words)
        print(relations_table(count_relations(stream, looking, chosen.boxes, words)))
        return
    if chosen.names:
        stream = Scenes(chosen.split, image_size=448, num_questions=0, length=chosen.scenes)
        print(names_table(count_names(stream, settings.build()[0], settings.words)))
        return
    verbalizers = build_measured(settings, tuple(chosen.kind or SCORES))
    if chosen.set:
        changed = {name: yaml.safe_load(value) for name, _, value in (word.partition("=") for word in chosen.set)}
        if unknown := [name for name in changed if any(name not in each.settings() for each in verbalizers)]:
            parser.error(f"expected settings of the verbalizer after --set, got {', '.join(unknown)}")
        verbalizers = [replace(verbalizer, **changed) for verbalizer in verbalizers]
    measured = evaluate_verbalizers(verbalizers, chosen.scenes, split=chosen.split)
    print(markdown_table(measured))
    if chosen.json is not None:
        known = json.loads(chosen.json.read_text(encoding="utf-8")) if chosen.json.is_file() else {}
        known |= {result.kind: vars(result) for result in measured}
        chosen.json.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
