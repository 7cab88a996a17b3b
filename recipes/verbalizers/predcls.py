"""The predicate classifier: relations of scenes from the names and places of what is there, without pixels.

Layouts take milliseconds. What segmenter and detector would find is the truth, with boxes that are a little off, a map
that is moved against them and segments that are missing, other ones each time a scene is seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from moai.scenes.scenes import SceneSample
from moai.scenes.vocabulary import PREDICATES
from moai.settings import settings
from moai.training.task import Batch
from recipes.stages import CountingTask, StageSettings
from verbalizers.core.named_objects import name_objects
from verbalizers.predcls import PredClsConfig, PredClsForSceneGraph, measure_pairs

from .scenes import SCENE_NAMES, SceneSettings, sample_scene

__all__ = ["PairedScene", "PredClsSettings", "PredClsTask", "build_predcls", "pair_scene"]

# Deviations of a box's sides in parts of its size, of most boxes and of some; how far the map is moved, in parts of its
# side; share of segments without a map.
_BOX_ERROR, _LARGE_BOX_ERROR, _LARGE_SHARE, _MAP_SHIFT, _LOST_SHARE = 0.05, 0.15, 0.1, 0.0125, 0.08


@settings(kw_only=True)
class PredClsSettings(StageSettings):
    """How it is trained; a step's batch is of scenes.

    Attributes:
        model: Fields of PredClsConfig.
    """

    model: dict[str, Any] = field(default_factory=dict)


def build_predcls(settings: PredClsSettings) -> PredClsForSceneGraph:
    """The model as it is saved, with fresh weights."""
    config = PredClsConfig(
        id2label=dict(enumerate(SCENE_NAMES)),
        label2id={name: index for index, name in enumerate(SCENE_NAMES)},
        predicate_names=list(PREDICATES),
        symmetric_predicates=["beside"],
        **settings.model,
    )
    return PredClsForSceneGraph(config)


@dataclass(frozen=True)
class PairedScene:
    """What perfect verbalizers find, and how it is related.

    Attributes:
        labels: int64 (N,) index into :data:`.scenes.SCENE_NAMES`.
        boxes: float32 (N, 4) in pixels of the map.
        object_map: int16 (H, W), whose pixel it is; -1 = nobody's.
        predicates: int64 (N, N), subject first: 0 = not related, else 1 + index into ``PREDICATES``.
    """

    labels: np.ndarray
    boxes: np.ndarray
    object_map: np.ndarray
    predicates: np.ndarray


def pair_scene(sample: SceneSample) -> PairedScene:
    """List a scene's objects as the classifier's verbalizer does."""
    found, truth = name_objects(sample.truth, 0.0, 1.0, "recipe"), sample.truth.relations
    places = {
        (name, box.tobytes()): row for row, (name, box) in enumerate(zip(found.names, found.boxes_xyxy, strict=True))
    }
    rows = [places.get((n, box.tobytes())) for n, box in zip(truth.object_names, truth.object_boxes_xyxy, strict=True)]
    predicates = np.zeros((len(found.names), len(found.names)), np.int64)
    for subject, predicate, target in zip(truth.subject_indices, truth.predicates, truth.object_indices, strict=True):
        if rows[subject] is not None and rows[target] is not None:
            predicates[rows[subject], rows[target]] = 1 + PREDICATES.index(predicate)
    labels = np.array([SCENE_NAMES.index(name) for name in found.names], dtype=np.int64)
    return PairedScene(labels, found.boxes_xyxy, found.object_map.astype(np.int16), predicates)


def _measure_noisily(scene: PairedScene, rng: np.random.Generator) -> np.ndarray:
    """What :func:`measure_pairs` might say of what real verbalizers find."""
    number, height, width = len(scene.labels), *scene.object_map.shape
    sizes = np.tile(scene.boxes[:, 2:] - scene.boxes[:, :2], 2)
    error = np.where(rng.random((number, 1)) < _LARGE_SHARE, _LARGE_BOX_ERROR, _BOX_ERROR)
    boxes = scene.boxes + rng.normal(size=(number, 4)) * error * sizes
    shift = np.round(rng.uniform(-_MAP_SHIFT, _MAP_SHIFT, 2) * (height, width)).astype(int)
    kept = np.append(np.where(rng.random(number) < _LOST_SHARE, -1, np.arange(number)), -1)
    object_map = kept[np.roll(scene.object_map, tuple(shift), axis=(0, 1))]
    return measure_pairs(boxes.clip(0, (width, height) * 2).astype(np.float32), object_map)


class PredClsTask(CountingTask):
    """Training on layouts: cross entropy of every ordered pair.

    Args:
        model: The classifier.
        settings: The stage's.
        scenes: The stream; nothing of it is painted.
    """

    count_names = [f"{word}_{name}" for name in ("recall", "precision") for word in ("asked", "right")]

    def __init__(self, model: PredClsForSceneGraph, settings: PredClsSettings, scenes: SceneSettings) -> None:
        super().__init__(model, settings.optimization, scenes)
        self.scenes = scenes
        self._paired: dict[int, PairedScene] = {}

    def _scene(self, index: int) -> PairedScene:
        if index not in self._paired:
            self._paired[index] = pair_scene(sample_scene(self.scenes, index))
        return self._paired[index]

    def batch(self, step: int, place: int) -> Batch:
        """Labels, measures and predicates of the pairs of a micro-batch's scenes."""
        batch_size = self.optimization.batch_size
        number = self.scenes.num_shards * self.scenes.num_scenes
        visit, within = divmod(step, number // batch_size)
        order = np.random.default_rng([self.scenes.seed, visit]).permutation(number)
        chosen = order[within * batch_size : (within + 1) * batch_size][place :: self.num_micro_batches]
        rng = np.random.default_rng([self.scenes.seed, step, place])
        rows = [_pairs(self._scene(int(index)), rng) for index in chosen]
        inputs = tuple(torch.from_numpy(np.concatenate(column)) for column in zip(*rows, strict=True))
        return Batch(inputs, float(len(inputs[0])))

    def forward(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """Loss times pairs; of the related pairs how many are told rightly, and of those told as related."""
        *pairs, predicates = inputs
        logits = self.model(*pairs)
        loss = F.cross_entropy(logits.float(), predicates, reduction="sum")
        told = logits.detach().argmax(-1)
        right = float(((told == predicates) & (told > 0)).sum())
        counts = {"right_recall": right, "asked_recall": float((predicates > 0).sum())}
        counts |= {"right_precision": right, "asked_precision": float((told > 0).sum())}
        return loss, self.counters(counts)


def _pairs(scene: PairedScene, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    subjects, objects = np.nonzero(~np.eye(len(scene.labels), dtype=bool))
    measures = _measure_noisily(scene, rng)[subjects, objects]
    return scene.labels[subjects], scene.labels[objects], measures, scene.predicates[subjects, objects]
