"""Scenes as images and truth for the small verbalizers, rendered on demand.

Images are painted at several sizes and averaged down to the one that the models see, as a verbalizer does with a user's
image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from pydantic import StrictInt
from torch import nn

from moai.scenes.scenes import Scenes, SceneSample
from moai.scenes.vocabulary import OBJECT_CLASSES, PREDICATES, STUFF_NAMES
from moai.settings import Number, Positive, settings
from moai.training.task import Batch
from moai.training.train_settings import OptimizationSettings
from recipes.stages import CountingTask

__all__ = [
    "NUM_OBJECT_NAMES",
    "SCENE_NAMES",
    "SceneBatches",
    "SceneSettings",
    "SceneTask",
    "TrainingScene",
    "paint_scene",
    "sample_scene",
    "training_scene",
]

#: Every name of a scene: the objects (first those of the panoptic vocabulary), then the stuff.
SCENE_NAMES: tuple[str, ...] = (*OBJECT_CLASSES, *STUFF_NAMES)
NUM_OBJECT_NAMES = len(OBJECT_CLASSES)
_NAME_INDEX = {name: index for index, name in enumerate(SCENE_NAMES)}
_PREDICATE_INDEX = {name: index for index, name in enumerate(PREDICATES)}


@settings
class SceneSettings:
    """The stream of scenes, in shards of growing difficulty.

    Attributes:
        num_shards: How many there are; training goes round.
        num_scenes: Scenes per shard.
        image_size: Height and width in pixels that the models see.
        painted_sizes: Sizes in turn at which scenes are painted before they are averaged down.
        seed: Seed of the stream.
        curriculum: Triples (first shard, fewest objects, most objects), ascending. Crowded scenes teach more names
            per second than the test's.
        image_noise: Share of images that are grey, bright or dark, or in a grey frame.
        num_candidates: Scenes drawn for each, of which the one with the most relations between things is taken: half
            of all scenes have none.
    """

    num_shards: StrictInt = 32
    num_scenes: StrictInt = 1024
    image_size: StrictInt = 160
    painted_sizes: tuple[int, ...] = (160, 224, 160, 320, 160, 224, 160, 448)
    seed: StrictInt = 20
    curriculum: tuple[tuple[int, int, int], ...] = ((0, 1, 9),)
    image_noise: Number = 0.3
    num_candidates: Positive = 1

    def num_objects(self, shard: int) -> tuple[int, int]:
        """Fewest and most objects in the scenes of a shard."""
        return [(fewest, most) for first, fewest, most in self.curriculum if first <= shard][-1]


@dataclass(frozen=True)
class TrainingScene:
    """An image and its truth, entities numbered 0 ... E - 1.

    Attributes:
        image: uint8 (H, W, 3) RGB.
        entity_map: uint8 (H, W), entity + 1; 0 = none.
        names: int64 (E,) index into :data:`SCENE_NAMES`.
        boxes: float32 (E, 4) x0, y0, x1, y1 in [0, 1], tight around what is visible.
        relations: int64 (R, 3) subject, object, index into ``PREDICATES``.
    """

    image: np.ndarray
    entity_map: np.ndarray
    names: np.ndarray
    boxes: np.ndarray
    relations: np.ndarray

    def flipped(self) -> TrainingScene:
        """Mirrored left to right; no relation of the scenes knows left from right."""
        boxes = self.boxes.copy()
        boxes[:, [0, 2]] = 1 - self.boxes[:, [2, 0]]
        return TrainingScene(self.image[:, ::-1], self.entity_map[:, ::-1], self.names, boxes, self.relations)


def training_scene(sample: SceneSample, image_size: int) -> TrainingScene:
    """A scene as the models see it.

    Args:
        sample: A scene, painted at any size.
        image_size: Wanted height and width in pixels.
    """
    truth, painted = sample.truth.relations, sample.image_size
    entities = sample.entities
    # The truth lists entities in an order of its own; boxes and names lead back to the map's numbers.
    numbers = {
        (sample.layout.entity_name(index), entities.boxes_xyxy[index].tobytes()): index + 1
        for index in range(len(entities.boxes_xyxy))
    }
    renumbering = np.zeros(len(entities.boxes_xyxy) + 1, dtype=np.uint8)
    for new, (name, box) in enumerate(zip(truth.object_names, truth.object_boxes_xyxy, strict=True)):
        renumbering[numbers[name, box.tobytes()]] = new + 1
    picked = ((np.arange(image_size) + 0.5) * painted / image_size).astype(np.int64)
    image = Image.fromarray(sample.image)
    if painted != image_size:
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    predicates = [_PREDICATE_INDEX[name] for name in truth.predicates]
    relations = np.stack([truth.subject_indices, truth.object_indices, np.array(predicates, np.int64)], axis=1)
    return TrainingScene(
        image=np.asarray(image),
        entity_map=renumbering[entities.entity_map[picked[:, None], picked]],
        names=np.array([_NAME_INDEX[name] for name in truth.object_names], dtype=np.int64),
        boxes=(truth.object_boxes_xyxy / painted).astype(np.float32),
        relations=relations,
    )


def sample_scene(settings: SceneSettings, index: int) -> SceneSample:
    """A scene of the stream, at one of its sizes."""
    size = settings.painted_sizes[index % len(settings.painted_sizes)]
    objects = settings.num_objects(index // settings.num_scenes)
    scenes = Scenes("train", settings.seed, size, objects, num_questions=0, image_noise=settings.image_noise)
    first = index * settings.num_candidates
    drawn = (scenes[candidate] for candidate in range(first, first + settings.num_candidates))
    return max(drawn, key=_num_thing_relations)


def paint_scene(settings: SceneSettings, index: int) -> TrainingScene:
    """A scene of the stream, painted at one of its sizes."""
    return training_scene(sample_scene(settings, index), settings.image_size)


def _num_thing_relations(sample: SceneSample) -> int:
    first_thing = len(sample.layout.stuff)
    return sum(min(subject, target) >= first_thing for subject, _, target in sample.layout.relations)


class SceneTask(CountingTask):
    """A task on scenes, each of which is one target.

    Args:
        model: The trained model.
        optimization: How.
        scenes: Scenes of a step.
    """

    def __init__(self, model: nn.Module, optimization: OptimizationSettings, scenes: SceneBatches) -> None:
        super().__init__(model, optimization, scenes.settings)
        self.scenes = scenes

    def batch(self, step: int, place: int) -> Batch:
        """Scenes."""
        scenes = self.scenes(step)[place :: self.num_micro_batches]
        return Batch(scenes, float(len(scenes)))

    def means(self, values: Mapping[str, float], number: int) -> dict[str, torch.Tensor]:
        """Counters of what was measured as means over a number of scenes."""
        asked = {f"asked_{name}": float(number) for name in values}
        return self.counters(asked | {f"right_{name}": float(value) * number for name, value in values.items()})


class SceneBatches:
    """Scenes of a step, as a function of the step alone.

    Args:
        settings: The stream's settings.
        batch_size: Scenes per step.
        first_shard: Where the round starts.
    """

    def __init__(self, settings: SceneSettings, batch_size: int, first_shard: int = 0) -> None:
        self.settings, self.batch_size, self.first_shard = settings, batch_size, first_shard

    def __call__(self, step: int) -> list[TrainingScene]:
        """A step's scenes.

        Every visit to a shard has an order of its own and mirrors other halves of it.
        """
        settings = self.settings
        visit, within = divmod(step, settings.num_scenes // self.batch_size)
        first = (self.first_shard + visit) % settings.num_shards * settings.num_scenes
        rng = np.random.default_rng([settings.seed, visit])
        order, is_flipped = rng.permutation(settings.num_scenes), rng.random(settings.num_scenes) < 0.5
        chosen = order[within * self.batch_size : (within + 1) * self.batch_size]
        scenes = [paint_scene(settings, first + int(index)) for index in chosen]
        return [s.flipped() if is_flipped[i] else s for s, i in zip(scenes, chosen, strict=True)]
