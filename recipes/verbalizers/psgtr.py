"""The small PSGTR: relations of scenes, on the backbone that the small Mask2Former has learned.

Triplet queries need many steps, and they need little more than the coarsest map of a backbone that knows the names
already. So the backbone rests, its map is computed once per scene and kept on disk, and the transformer reads from
there, many scenes per second ("triplets"). Then the mask heads learn from images with all else at rest ("masks").
"""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from moai.scenes.vocabulary import PREDICATES
from moai.settings import Positive, settings
from recipes.stages import StageSettings
from verbalizers.core.durable_files import atomic_file
from verbalizers.psgtr import PSGTRConfig, PSGTRForSceneGraph, PSGTRImageProcessor, PSGTROutput
from verbalizers.psgtr.loss_psgtr import mask_loss, match_triplets, triplet_loss

from .backbone import IMAGE_MEAN, IMAGE_STD, backbone_config, fold_frozen_norms
from .mask2former import pixels_of
from .scenes import NUM_OBJECT_NAMES, SCENE_NAMES, SceneSettings, SceneTask, TrainingScene, paint_scene

__all__ = [
    "MaskTask",
    "PSGTRSettings",
    "TripletTask",
    "build_psgtr",
    "graph_processor",
    "take_segmenter_backbone",
    "write_features",
]

_LABEL_STRIDE = 2


@settings
class PSGTRSettings:
    """The recipe.

    Attributes:
        triplets: How to optimise the transformer.
        masks: How to optimise the mask heads afterwards.
        model: Fields of PSGTRConfig.
        num_shards: How many of the shards the transformer learns from; None = all.
    """

    triplets: StageSettings
    masks: StageSettings
    model: dict[str, Any] = field(default_factory=dict)
    num_shards: Positive | None = None


def build_psgtr(settings: PSGTRSettings) -> PSGTRForSceneGraph:
    """The model as it is saved, with fresh weights."""
    config = PSGTRConfig(
        backbone_config=backbone_config((0, 1, 2, 3)),  # the coarsest map has stride 16: ten cells a side, not five
        id2label=dict(enumerate(SCENE_NAMES)),
        label2id={name: index for index, name in enumerate(SCENE_NAMES)},
        predicate_names=list(PREDICATES),
        num_thing_classes=NUM_OBJECT_NAMES,
        num_frozen_stages=0,
        **settings.model,
    )
    return PSGTRForSceneGraph(config)


def graph_processor(image_size: int) -> PSGTRImageProcessor:
    """Images of any shape become squares, as in training."""
    return PSGTRImageProcessor(
        size={"height": image_size, "width": image_size},
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_STD),
        do_pad=False,
    )


def take_segmenter_backbone(model: PSGTRForSceneGraph, network: nn.Module) -> None:
    """Copy the backbone of the small Mask2Former and freeze it.

    Args:
        model: Receives the weights.
        network: The segmenter's.
    """
    model.backbone.model.load_state_dict(network.state_dict(), strict=True)
    model.backbone.requires_grad_(False)
    fold_frozen_norms(model.backbone.model)
    model.backbone.model.to(memory_format=torch.channels_last)


@torch.no_grad()
def write_features(model: PSGTRForSceneGraph, settings: SceneSettings, folder: Path, batch_size: int = 32) -> None:
    """Write labels and the backbone's coarsest map, float16 (C, h, w), of every scene, shard by shard."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(settings.num_shards):
        path, tensors = _feature_path(folder, shard), {}
        if path.is_file():
            continue
        for start in range(0, settings.num_scenes, batch_size):
            numbers = range(start, min(start + batch_size, settings.num_scenes))
            scenes = [paint_scene(settings, shard * settings.num_scenes + number) for number in numbers]
            with torch.autocast("cpu", torch.bfloat16):
                maps = model.backbone.model(pixels_of(scenes))[-1].half()
            for number, scene, coarse in zip(numbers, scenes, maps, strict=True):
                held = {"map": coarse.contiguous(), **graph_labels(scene)}
                tensors |= {f"{number}.{name}": value.clone() for name, value in held.items()}
        with atomic_file(path) as temporary:
            save_file(tensors, temporary)


def _feature_path(folder: Path, shard: int) -> Path:
    return folder / f"features-{shard:05d}.safetensors"


class FeatureBatches:
    """Scenes' maps and labels, drawn from all shards.

    Args:
        settings: Of the stream.
        folder: What :func:`write_features` wrote.
        batch_size: Scenes per step.
    """

    def __init__(self, settings: SceneSettings, folder: Path, batch_size: int) -> None:
        self.settings, self.batch_size = settings, batch_size
        self.files = [safe_open(_feature_path(folder, shard), "pt") for shard in range(settings.num_shards)]

    def __call__(self, step: int) -> list[dict[str, torch.Tensor]]:
        """Features and labels of a step's scenes; every scene once per round, in another order each."""
        per_shard = self.settings.num_scenes
        visit, within = divmod(step, len(self.files) * per_shard // self.batch_size)
        order = np.random.default_rng([self.settings.seed, visit]).permutation(len(self.files) * per_shard)
        chosen = order[within * self.batch_size : (within + 1) * self.batch_size]
        return [self._read(*divmod(int(index), per_shard)) for index in chosen]

    def _read(self, shard: int, number: int) -> dict[str, torch.Tensor]:
        names = ("map", "class_labels", "boxes", "relations")
        return {name: self.files[shard].get_tensor(f"{number}.{name}") for name in names}


def graph_labels(scene: TrainingScene) -> dict[str, torch.Tensor]:
    """What :meth:`PSGTRForSceneGraph.forward` takes as an image's labels, without masks."""
    corners = torch.from_numpy(scene.boxes)
    boxes = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1)
    relations = torch.from_numpy(scene.relations.copy())
    relations[:, 2] += 1  # predicates count from 1
    return {"class_labels": torch.from_numpy(scene.names.copy()), "boxes": boxes, "relations": relations}


class TripletTask(SceneTask):
    """Training of the transformer on stored maps; `scenes` are :class:`FeatureBatches`."""

    #: Counter -> which of the last layer's losses it adds up.
    losses = {"subject": "subject_class", "object": "object_class", "relation": "relation_class"}
    losses["giou"] = "subject_giou"
    count_names = [f"{word}_{name}" for name in losses for word in ("right", "asked")]

    def forward(self, inputs: list[dict[str, torch.Tensor]]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss summed over scenes; the last layer's class losses and GIoU loss."""
        maps = torch.stack([scene["map"] for scene in inputs]).float()
        losses = triplet_loss(self._outputs(maps), inputs, self.model.config)
        means = {name: float(losses[key].detach()) for name, key in self.losses.items()}
        return torch.stack(list(losses.values())).sum() * len(inputs), self.means(means, len(inputs))

    def _outputs(self, maps: torch.Tensor) -> Any:
        states, _, _ = self.model.head.decode(maps)  # (L, B, Q, D)
        outputs = self.model.head.classify(states[-1])
        earlier = tuple(self.model.head.classify(layer) for layer in states[:-1])
        return PSGTROutput(**outputs, auxiliary_outputs=earlier)


class MaskTask(SceneTask):
    """Training of the mask heads on images, all else frozen."""

    count_names = ["right_dice", "asked_dice", "right_focal", "asked_focal"]
    most_triplets = 3  # of each scene: every mask costs a small network's pass

    def forward(self, inputs: list[TrainingScene]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss summed over scenes; Dice and focal loss."""
        scenes, model, head = inputs, self.model, self.model.head
        labels = [graph_labels(scene) | {"masks": entity_masks(scene)} for scene in scenes]
        with torch.no_grad():
            maps = model.backbone.model(pixels_of(scenes))
            states, projected, memory_map = head.decode(maps[-1])
            outputs = head.classify(states[-1])
            matches = [match_triplets(outputs, label, i, model.config) for i, label in enumerate(labels)]
            matches = [(queries[: self.most_triplets], found[: self.most_triplets]) for queries, found in matches]
        width = max(len(queries) for queries, _ in matches)
        chosen = torch.zeros(len(scenes), width, dtype=torch.long)
        for index, (queries, _) in enumerate(matches):
            chosen[index, : len(queries)] = queries
        picked = states[-1].gather(1, chosen[..., None].expand(-1, -1, states.shape[-1]))
        drawn = head.draw_masks(picked, projected, memory_map, list(maps[:-1]))
        renumbered = [(torch.arange(len(queries)), triplets) for queries, triplets in matches]
        losses = mask_loss(PSGTROutput(**drawn), labels, renumbered, model.config)
        means = {
            name: float((losses[f"subject_{name}"] + losses[f"object_{name}"]).detach()) / 2
            for name in ("dice", "focal")
        }
        return torch.stack(list(losses.values())).sum() * len(scenes), self.means(means, len(scenes))


def entity_masks(scene: TrainingScene) -> torch.Tensor:
    """Masks of the entities, bool (E, H / 2, W / 2)."""
    small = np.ascontiguousarray(scene.entity_map[::_LABEL_STRIDE, ::_LABEL_STRIDE])
    return torch.from_numpy(small)[None] == torch.arange(1, len(scene.names) + 1)[:, None, None]
