"""Relations benchmark: recall and precision of scene graphs against geometry, per predicate, on test scenes.

    python -m moai.evaluation.relations_benchmark --scenes 1000
    python -m moai.evaluation.relations_benchmark --scenes 200 --model moai-nano
    python -m moai.evaluation.relations_benchmark --scenes 1000 --boxes

The first command gives `scene_graph/geometric` the true segments and boxes, which measures its geometry alone; the
second gives it what a checkpoint's segmenter and detector find, beside that checkpoint's own scene graph; the third
the true boxes of things alone, as a detector of photographs would. Scenes say "driving on" where geometry can only say
"on": narrower predicates count as what they look like (:data:`SEEN_AS`), those of people are told of boxes alone, the
others are not asked for. "beside" counts in both directions.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from moai.scenes.scenes import Scenes, SceneSample
from moai.scenes.vocabulary import OBJECT_CLASSES
from verbalizers import Detections, Relations, Scene, Verbalizer, build_verbalizer, parse_scene
from verbalizers.core.boxes import box_iou
from verbalizers.core.geometry import PEOPLES_PREDICATES, PREDICATES

from ..checkpoints.io.lookup import find_checkpoint
from .tables import format_table

__all__ = ["SEEN_AS", "RelationCounts", "count_relations", "main"]

SEEN_AS: dict[str, str] = {
    **{predicate: predicate for predicate in (*PREDICATES, *PEOPLES_PREDICATES)},
    **dict.fromkeys(("standing on", "sitting on", "walking on", "running on", "parked on", "driving on"), "on"),
    "flying over": "over",
}
"""Predicates of scenes and what they look like; hanging and attached are not for geometry."""

MIN_IOU = 0.5
_BATCH = 8
_NUMBERS = {5: "five", 8: "eight"}


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
    samples: Iterable[SceneSample], verbalizers: Sequence[Verbalizer] | None = None, has_boxes_only: bool = False
) -> Mapping[str, RelationCounts]:
    """Run scene graphs on scenes.

    Args:
        samples: Scenes with their truth.
        verbalizers: Those of a checkpoint; its scene graph is counted too. None = the truth's segments and detections.
        has_boxes_only: Of the truth the boxes of things; relations to grounds and skies are not asked for.

    Returns:
        Counts by the scene graph's name.
    """
    geometric = build_verbalizer("scene_graph", "geometric")
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


def markdown_table(counts: Mapping[str, RelationCounts]) -> str:
    """One row per scene graph and predicate."""
    columns = ["scene graph", "predicate", "true ones", "recall", "found", "in pairs the truth speaks about"]
    rows = []
    for name, counted in counts.items():
        for predicate, asked, right, judged, agreed, found in counted.rows():
            recall, precision = (f"{a / b:.3f}" if b else "-" for a, b in ((right, asked), (agreed, judged)))
            rows.append((name, predicate, asked, recall, found, judged, precision))
    return format_table([*columns, "of them right"], rows, num_left=2)


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Recall and precision of relations that geometry shows.")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--size", type=int, default=448, help="pixels of a side")
    parser.add_argument("--model", type=Path, help="checkpoint whose verbalizers look, instead of the truth")
    parser.add_argument("--boxes", action="store_true", help="of the truth the boxes of things alone")
    chosen = parser.parse_args(arguments)
    if chosen.boxes and chosen.model is not None:
        parser.error("expected --boxes, which is about the truth, or --model, got both")
    verbalizers = None
    if chosen.model is not None:
        verbalizers, absent = VerbalizerSettings.load(find_checkpoint(chosen.model)).build()
        for kind, reason in absent.items():
            print(f"without {kind}: {reason}")
    stream = Scenes(chosen.split, image_size=chosen.size, num_questions=1, length=chosen.scenes)
    print(markdown_table(count_relations(stream, verbalizers, chosen.boxes)))


if __name__ == "__main__":
    main()
