"""Pretraining of the compressor on verbalizations alone.

No image, no question, no decoder: an order of magnitude more scenes per second than training the whole model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from moai.models.moai.modeling_moai import MoAIForConditionalGeneration
from moai.training.task import Batch
from recipes.stages import CountingTask

from .config import PhraseSettings
from .phrase_recall import SLOT_GROUPS, PhraseVocabulary
from .scenes import ShardBatches, TokenScene

__all__ = ["CompressorTask", "pad_verbalizations", "recall_counts"]


def pad_verbalizations(scenes: Sequence[TokenScene], bos_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Verbalizations behind a BOS, padded on the right.

    Args:
        scenes: Any.
        bos_token_id: Opens every verbalization, also an empty one.

    Returns:
        int64 ``(S, A)`` ids and mask.
    """
    rows = [[bos_token_id, *scene.auxiliary_ids] for scene in scenes]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(width) < lengths[:, None]).long()


class CompressorTask(CountingTask):
    """Compressor pretraining: the loss of :class:`.phrase_recall.PhraseRecall`.

    Args:
        model: The whole model with a ``recall``; only compressor and recall get gradients.
        vocabulary: How to read verbalizations.
        shards: Scenes of a step.
        settings: The stage's.
    """

    count_names = [f"{word}_{name}" for name in ("word", *SLOT_GROUPS) for word in ("asked", "right")]

    def __init__(
        self,
        model: MoAIForConditionalGeneration,
        vocabulary: PhraseVocabulary,
        shards: ShardBatches,
        settings: PhraseSettings,
    ) -> None:
        super().__init__(model, settings.optimization, settings.shards)
        self.vocabulary, self.shards = vocabulary, shards

    def batch(self, step: int, place: int) -> Batch:
        """Ids and mask of :func:`pad_verbalizations`; a scene is a target."""
        scenes = self.shards(step)[place :: self.num_micro_batches]
        ids, mask = pad_verbalizations(scenes, self.model.config.text_config.bos_token_id)
        return Batch((ids, mask), float(len(scenes)), float(mask.sum()))

    def forward(self, inputs: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss times scenes, and shares of what is recalled."""
        ids, mask = inputs
        latents = self.model.model.get_auxiliary_states(ids, mask, None)
        embedding = self.model.get_input_embeddings().weight
        loss, right = self.model.recall(latents, embedding, ids, mask, self.vocabulary)
        return loss * len(ids), self.counters(recall_counts(right))


def recall_counts(right: Mapping[str, float]) -> dict[str, float]:
    """Counts of one batch's shares."""
    return {f"asked_{name}": 1.0 for name in right} | {f"right_{name}": share for name, share in right.items()}
