"""Before the decoder listens: the compressor learns to keep phrases together, from verbalizations alone.

No picture, no question, no decoder: an order of magnitude more scenes per second than training the whole model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from moai.models.moai.modeling_moai import MoAIForConditionalGeneration

from .phrase_recall import SLOT_GROUPS, PhraseVocabulary
from .scene_shards import SceneShard, wait_for_shard
from .text_pretraining import sorted_batches

__all__ = ["CompressorTask", "pad_verbalizations"]


def pad_verbalizations(shard: SceneShard, scenes: np.ndarray, bos_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Verbalizations behind a BOS, padded on the right.

    Args:
        shard: Tokens.
        scenes: Scene numbers inside the shard.
        bos_token_id: Opens every verbalization, also an empty one.

    Returns:
        int64 ``(S, A)`` ids and mask.
    """
    rows = [[bos_token_id, *shard.auxiliary_ids(scene).tolist()] for scene in scenes]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(width) < lengths[:, None]).long()


class CompressorTask:
    """Steps of compressor pretraining: step -> shard -> batch -> loss of :class:`.phrase_recall.PhraseRecall`.

    Args:
        model: The whole model with a ``recall``; only compressor and recall get gradients.
        vocabulary: How to read verbalizations.
        shards: Folder of shards.
        num_scenes: Scenes per shard.
        batch_size: Scenes per step, over all ranks.
    """

    def __init__(
        self,
        model: MoAIForConditionalGeneration,
        vocabulary: PhraseVocabulary,
        shards: Path,
        num_scenes: int,
        batch_size: int,
    ) -> None:
        self.model, self.vocabulary, self.shards = model, vocabulary, shards
        self.batch_size, self.steps_per_shard = batch_size, num_scenes // batch_size
        self._loaded: tuple[int, SceneShard, list[np.ndarray]] | None = None
        names = ("word", *SLOT_GROUPS)
        self.count_names = ["weight", "scenes", *(f"{word}_{name}" for name in names for word in ("asked", "right"))]

    def __call__(self, step: int, rank: int, num_ranks: int) -> tuple[torch.Tensor, dict[str, float]]:
        """See :data:`moai.training.loop.StepFunction`."""
        number, place = divmod(step, self.steps_per_shard)
        if self._loaded is None or self._loaded[0] != number:
            shard = wait_for_shard(self.shards, number)
            self._loaded = number, shard, sorted_batches(shard, self.batch_size, number)
        _, shard, batches = self._loaded
        scenes = batches[place][rank::num_ranks]
        ids, mask = pad_verbalizations(shard, scenes, self.model.config.text_config.bos_token_id)
        with torch.autocast("cpu", torch.bfloat16):
            latents = self.model.model.get_auxiliary_states(ids, mask, None)
            loss, right = self.model.recall(
                latents, self.model.get_input_embeddings().weight, ids, mask, self.vocabulary
            )
        counts = {"weight": float(len(scenes)), "scenes": float(len(scenes))}
        for name, share in right.items():
            counts |= {f"asked_{name}": 1.0, f"right_{name}": share}
        return loss * len(scenes), counts
