"""The small Mask2Former: panoptic segmentation of scenes, trained with dense auxiliary names.

Matched queries alone teach a backbone slowly. While training, two linear layers also name every cell of the
backbone's stride-16 map and of the mask features; they are shed by the export.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import StrictInt
from torch import nn
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessorPil

from moai.scenes.vocabulary import PANOPTIC_NAMES, STUFF_NAMES
from moai.settings import Number, settings
from recipes.stages import StageSettings, load_finished

from .backbone import (
    IMAGE_MEAN,
    IMAGE_STD,
    backbone_config,
    fold_frozen_norms,
    freeze_early_stages,
    load_imagenet_weights,
)
from .scenes import NUM_OBJECT_NAMES, SCENE_NAMES, SceneBatches, SceneTask, TrainingScene

__all__ = ["Mask2FormerSettings", "Mask2FormerTask", "SegmenterWithNames", "build_mask2former", "segmenter_processor"]

#: Panoptic class of a scene's name; -1 = outside the panoptic vocabulary.
PANOPTIC_CLASS = np.array([PANOPTIC_NAMES.index(name) if name in PANOPTIC_NAMES else -1 for name in SCENE_NAMES])
_BACKBONE_STRIDE, _MASK_STRIDE, _LABEL_STRIDE = 16, 4, 2
_OBJECT_WEIGHT = 3.0  # three cells in four show stuff, which is soon learned


@settings(kw_only=True)
class Mask2FormerSettings(StageSettings):
    """The recipe.

    Attributes:
        model: Fields of Mask2FormerConfig.
        num_frozen_stages: How many of the backbone's blocks rest, the stem with them.
        names_weight: Weight of the dense auxiliary loss.
    """

    model: dict[str, Any] = field(default_factory=dict)
    num_frozen_stages: StrictInt = 2
    names_weight: Number = 1.0


def build_mask2former(settings: Mask2FormerSettings) -> Mask2FormerForUniversalSegmentation:
    """The model as it is saved, with fresh weights."""
    config = Mask2FormerConfig(
        backbone_config=backbone_config((1, 2, 3, 4)),
        id2label=dict(enumerate(PANOPTIC_NAMES)),
        label2id={name: index for index, name in enumerate(PANOPTIC_NAMES)},
        feature_strides=[4, 8, 16, 32],
        **settings.model,
    )
    return Mask2FormerForUniversalSegmentation(config)


def segmenter_processor(image_size: int) -> Mask2FormerImageProcessorPil:
    """Images of any shape become squares, as in training."""
    return Mask2FormerImageProcessorPil(
        size={"height": image_size, "width": image_size},
        size_divisor=32,
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_STD),
        num_labels=len(PANOPTIC_NAMES),
        ignore_index=255,
    )


class SegmenterWithNames(nn.Module):
    """The model and its two auxiliary layers.

    Args:
        settings: The recipe.
        start: Folder of a finished segmenter whose weights it starts from; None = ImageNet's in the backbone.
    """

    def __init__(self, settings: Mask2FormerSettings, start: Path | None = None) -> None:
        super().__init__()
        self.segmenter = build_mask2former(settings)
        network = self.network
        if start is None:
            load_imagenet_weights(network)
        else:
            load_finished(self.segmenter, start)
        fold_frozen_norms(network)
        freeze_early_stages(network, settings.num_frozen_stages)
        network.to(memory_format=torch.channels_last)
        num_names = len(SCENE_NAMES) + 1  # 0 = nothing
        self.backbone_namer = nn.Conv2d(network.feature_info.channels()[2], num_names, kernel_size=1)
        self.mask_namer = nn.Conv2d(self.segmenter.config.mask_feature_size, num_names, kernel_size=1)
        self._maps: list[torch.Tensor] = []
        self.segmenter.model.pixel_level_module.encoder.register_forward_hook(self._keep_maps)

    @property
    def network(self) -> nn.Module:
        """Timm's network."""
        return self.segmenter.model.pixel_level_module.encoder._backbone

    def _keep_maps(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        self._maps = list(outputs.feature_maps)

    def forward(
        self,
        pixel_values: torch.Tensor,
        names_map: torch.Tensor,
        mask_labels: list[torch.Tensor],
        class_labels: list[torch.Tensor],
    ) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """Loss of the model and of the names.

        Args:
            pixel_values: float (B, 3, H, W).
            names_map: int64 (B, H, W), name + 1, 0 = nothing.
            mask_labels: per image float (G, h, w).
            class_labels: per image int64 (G,).

        Returns:
            The model's output, the auxiliary loss and the share of stride-16 cells on objects that are named rightly.
        """
        output = self.segmenter(
            pixel_values=pixel_values, mask_labels=mask_labels, class_labels=class_labels, output_hidden_states=True
        )
        maps, self._maps = self._maps, []
        coarse = self.backbone_namer(maps[2])
        weight = coarse.new_ones(coarse.shape[1])
        weight[1 : NUM_OBJECT_NAMES + 1] = _OBJECT_WEIGHT
        offset = int(torch.randint(_BACKBONE_STRIDE, (1,)))  # a random pixel of each cell: on average, all of them
        wanted = names_map[:, offset::_BACKBONE_STRIDE, offset::_BACKBONE_STRIDE]
        loss = F.cross_entropy(coarse, wanted, weight)
        start = int(torch.randint(2, (1,)))
        features = output.pixel_decoder_last_hidden_state[:, :, start::2, start::2]
        first = start * _MASK_STRIDE + int(torch.randint(_MASK_STRIDE, (1,)))
        fine = names_map[:, first :: 2 * _MASK_STRIDE, first :: 2 * _MASK_STRIDE]
        loss = loss + F.cross_entropy(self.mask_namer(features), fine, weight)
        is_object = (wanted > 0) & (wanted <= NUM_OBJECT_NAMES)
        right = (coarse.argmax(1) == wanted)[is_object].float()
        return output, loss, right.mean() if len(right) else right.sum()


def pixels_of(scenes: Sequence[TrainingScene]) -> torch.Tensor:
    """Float (B, 3, H, W) in [-1, 1], channels last in memory."""
    images = torch.from_numpy(np.stack([np.ascontiguousarray(scene.image) for scene in scenes]))
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


class Mask2FormerTask(SceneTask):
    """Training of the segmenter and its auxiliary layers.

    Args:
        model: Both.
        settings: The recipe.
        scenes: Scenes of a step.
    """

    count_names = ["right_named", "asked_named"]

    def __init__(self, model: SegmenterWithNames, settings: Mask2FormerSettings, scenes: SceneBatches) -> None:
        super().__init__(model, settings.optimization, scenes)
        self.names_weight = settings.names_weight

    def forward(self, inputs: list[TrainingScene]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss summed over scenes, and the share of named cells."""
        targets = [segmentation_targets(scene) for scene in inputs]
        names_map = torch.from_numpy(np.stack([map_of_names(scene) for scene in inputs]))
        output, names_loss, right = self.model(
            pixels_of(inputs), names_map, [masks for masks, _ in targets], [classes for _, classes in targets]
        )
        loss = (output.loss + self.names_weight * names_loss) * len(inputs)
        return loss, self.means({"named": float(right)}, len(inputs))


def segmentation_targets(scene: TrainingScene) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks float (G, H / 2, W / 2) and panoptic classes int64 (G,) of a scene's segments."""
    inside = [index for index, name in enumerate(scene.names) if PANOPTIC_CLASS[name] >= 0]
    small = np.ascontiguousarray(scene.entity_map[::_LABEL_STRIDE, ::_LABEL_STRIDE])
    inside = [index for index in inside if (small == index + 1).any()]
    masks = np.stack([small == index + 1 for index in inside]) if inside else np.zeros((0, *small.shape), bool)
    classes = PANOPTIC_CLASS[scene.names[inside]] if inside else np.zeros(0, np.int64)
    return torch.from_numpy(masks.astype(np.float32)), torch.from_numpy(classes.astype(np.int64))


def map_of_names(scene: TrainingScene) -> np.ndarray:
    """int64 (H, W): index into ``SCENE_NAMES`` + 1 of each pixel, 0 = nothing."""
    table = np.zeros(len(scene.names) + 1, dtype=np.int64)
    table[1:] = scene.names + 1
    return table[scene.entity_map]


assert len(PANOPTIC_NAMES) - len(STUFF_NAMES) < NUM_OBJECT_NAMES < len(SCENE_NAMES)
