"""Pretraining of the vision tower, which learns to say what each patch shows.

No word, no decoder: a hundred images per second, and every patch of them is a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch.nn import functional as F

from moai.models.moai.modeling_moai import MoAIForConditionalGeneration
from moai.training.task import Batch
from recipes.stages import CountingTask

from .config import PatchSettings
from .multimodal_task import normalize_images
from .patch_recall import PieceVocabulary
from .scenes import ShardBatches, TokenScene

__all__ = ["PatchTask"]


@cache
def _mirrored(num_patches: int) -> torch.Tensor:
    """Where each patch lies in the mirrored image, int64 (P,)."""
    side = round(num_patches**0.5)
    return torch.arange(num_patches).view(side, side).flip(1).flatten()


class PatchTask(CountingTask):
    """Pretraining of tower and projector: cross entropy between what patches say and what they show.

    Args:
        model: The whole model; only tower and projector get gradients.
        vocabulary: Pieces of names.
        shards: Scenes of a step, with images.
        settings: The stage's.
    """

    count_names = [f"{word}_{name}" for name in ("thing", "colour") for word in ("asked", "right")]

    def __init__(
        self,
        model: MoAIForConditionalGeneration,
        vocabulary: PieceVocabulary,
        shards: ShardBatches,
        settings: PatchSettings,
    ) -> None:
        super().__init__(model, settings.optimization, settings.shards)
        self.vocabulary, self.shards = vocabulary, shards

    def batch(self, step: int, place: int) -> Batch:
        """Images, half of them mirrored, and what their patches show, float32 (S, P, V)."""
        scenes: Sequence[TokenScene] = self.shards(step)[place :: self.num_micro_batches]
        is_mirrored = np.random.default_rng((step, place)).random(len(scenes)) < 0.5
        num_patches = self.model.config.num_image_tokens
        shown = torch.zeros(len(scenes), num_patches, len(self.vocabulary.is_thing))
        images = []
        for row, (scene, mirror) in enumerate(zip(scenes, is_mirrored, strict=True)):
            images.append(scene.image[:, ::-1] if mirror else scene.image)
            patches = _mirrored(num_patches)[scene.pieces.patches] if mirror else scene.pieces.patches
            shown[row].index_put_((patches, scene.pieces.pieces), scene.pieces.shares, accumulate=True)
        return Batch((normalize_images(np.stack(images)), shown), float(len(scenes)))

    def forward(self, inputs: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss times scenes; of the patches that show things or colours, how many say one of those before any other."""
        images, shown = inputs
        features = self.model.get_image_features(images, return_dict=True).pooler_output
        said = F.linear(features, self.model.get_input_embeddings().weight.detach()).float()
        loss = F.cross_entropy(said.flatten(0, 1), shown.flatten(0, 1)) * len(images)
        counts = {}
        for name, is_one in (("thing", self.vocabulary.is_thing), ("colour", self.vocabulary.is_colour)):
            of_group = shown[..., is_one]
            asked = of_group.sum(-1) > 0
            best = said.detach()[..., is_one].argmax(-1, keepdim=True)
            right = (of_group.gather(-1, best).squeeze(-1) > 0) & asked
            counts |= {f"asked_{name}": float(asked.sum()), f"right_{name}": float(right.sum())}
        return loss, self.counters(counts)
