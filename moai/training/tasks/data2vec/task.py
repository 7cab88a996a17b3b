"""data2vec as a task: micro-batches of images with masks, their loss, the teacher's steps."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from moai.data.image_samples import CaptionedImage, ImageDataset
from moai.processing.pixel_values import compute_pixel_values

from ...task import Batch
from ..augmentation import AugmentationSettings, draw_view
from ..image_task import ImageTask
from .encoders import VisionEncoder
from .losses import teacher_decay
from .masks import draw_block_mask
from .objective import Data2VecObjective, Data2VecStudent
from .settings import Data2VecSettings, MaskSettings

__all__ = ["Data2VecCollator", "Data2VecTask"]


class Data2VecCollator:
    """Makes a view of each image and a mask over its patches.

    Args:
        image_processor: The tower's.
        side: Height and width of the tower's images in pixels.
        num_patches: Patches in a row of them.
        augmentation: How views differ.
        mask: What is not seen.
    """

    def __init__(
        self, image_processor: Any, side: int, num_patches: int, augmentation: AugmentationSettings, mask: MaskSettings
    ) -> None:
        self.image_processor, self.side, self.num_patches = image_processor, side, num_patches
        self.augmentation, self.mask = augmentation, mask
        self.num_masked = int(mask.share * num_patches**2)
        if self.num_masked < mask.min_block:
            raise ValueError(
                f"`mask.min_block` must be at most the patches that are covered, {self.num_masked} of "
                f"{num_patches**2}, got {mask.min_block}."
            )

    def __call__(self, drawn: list[tuple[CaptionedImage, Random]]) -> dict[str, torch.Tensor]:
        """``pixel_values`` ``(B, 3, H, W)`` and ``mask`` ``(B, T)`` bool."""
        views: list[Image.Image] = []
        masks = []
        for sample, rng in drawn:
            views.append(draw_view(sample.image, self.side, self.augmentation, rng))
            chosen = self.mask
            masks.append(draw_block_mask(self.num_patches, self.num_masked, rng, chosen.min_block, chosen.max_block))
        return {
            "pixel_values": torch.from_numpy(compute_pixel_values(self.image_processor, views)),
            "mask": torch.from_numpy(np.stack(masks)).flatten(1),
        }


class Data2VecTask(ImageTask):
    """A run of data2vec.

    Args:
        settings: The recipe.
        student: What is trained.
        image_processor: Its tower's.
        dataset: Images.
        validation: Those that are not learned from.
        start: Hashes of the files that the tower was loaded from.

    Attributes:
        objective: Student, teacher and loss.
    """

    def __init__(
        self,
        settings: Data2VecSettings,
        student: Data2VecStudent,
        image_processor: Any,
        dataset: ImageDataset,
        validation: ImageDataset | None = None,
        start: Mapping[str, str] | None = None,
    ) -> None:
        encoder, targets = student.encoder, settings.targets
        assert isinstance(encoder, VisionEncoder)
        config = encoder.model.config
        side, count = config.image_size, len(encoder.layers)
        collator = Data2VecCollator(
            image_processor, side, side // config.patch_size, settings.augmentation, settings.mask
        )
        super().__init__(settings, dataset, collator, validation, start or {})
        num_layers = targets.num_layers or max(1, count // 2)
        if num_layers > count:
            raise ValueError(f"`targets.num_layers` must be at most the tower's {count}, got {num_layers}.")
        self.schedule = settings.teacher
        self.objective = Data2VecObjective(
            student,
            tuple(range(count - num_layers, count)),
            targets.layer_result,
            targets.norm_of_layers,
            targets.norm_of_mean,
            targets.beta,
        )

    @property
    def model(self) -> Data2VecStudent:
        """The trained model."""
        return self.objective.student

    def make_batch(self, inputs: dict[str, torch.Tensor], step: int) -> Batch:
        """See :meth:`.image_task.ImageTask.make_batch`."""
        mask = inputs["mask"]
        return Batch(inputs, float(mask.sum()), float(mask.numel()))

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See :meth:`moai.training.task.Task.forward`; the counters tell how far tokens' predictions and targets differ
        from their mean: near 0 they say the same of every patch.
        """
        objective, mask = self.objective, inputs["mask"]
        predictions = objective.student(inputs["pixel_values"], mask)
        targets = objective.targets(inputs["pixel_values"])[mask]
        spread = [values.detach().float().std(dim=0, correction=0).mean() for values in (predictions, targets)]
        counts = torch.stack([*spread, spread[0].new_ones(())])
        return objective.loss_of(predictions, targets), {"spread": counts}

    def after_step(self, step: int) -> None:
        """Move the teacher."""
        chosen = self.schedule
        self.objective.advance(teacher_decay(step, chosen.start, chosen.end, chosen.num_steps))

    def extra_state(self) -> dict[str, torch.Tensor]:
        """The teacher."""
        named = self.objective.teacher.model.named_parameters()
        return {f"teacher.{name}": value for name, value in named}

    def report(self, counters: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Standard deviation over tokens, a mean over channels, of predictions and targets."""
        predictions, targets, count = counters["spread"].tolist()
        return {"spread": {"predictions": predictions / count, "targets": targets / count}} if count else {}
