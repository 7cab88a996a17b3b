"""Before any picture: the decoder learns to read verbalizations as plain text in its prompt.

One sequence holds a verbalization and all questions about it. Each question sees the verbalization and itself only
and counts its positions from the verbalization's end, so that a packed row equals as many single prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from moai.scenes.scenes import QUESTION_KINDS

from .scene_shards import SceneShard, wait_for_shard

__all__ = ["PromptIds", "TextBatch", "TextTask", "pack_texts"]

KIND_NAMES = (*QUESTION_KINDS, "listing")  # kind -1 is the last


@dataclass(frozen=True)
class PromptIds:
    """The fixed ids of a prompt: BOS and system sentence; what precedes a question; what follows it."""

    opening: tuple[int, ...]
    before_question: tuple[int, ...]
    after_question: tuple[int, ...]


@dataclass(frozen=True)
class TextBatch:
    """Packed sequences, padded on the right.

    Attributes:
        input_ids: int64 (B, L).
        segments: int64 (B, L): 0 = verbalization, 1.. = question, -1 = padding.
        position_ids: int64 (B, L).
        is_answer: bool (B, L): the token belongs to an answer.
        kinds: int64 (B, L): the question's kind, counted from 0; the last is a listing.
    """

    input_ids: torch.Tensor
    segments: torch.Tensor
    position_ids: torch.Tensor
    is_answer: torch.Tensor
    kinds: torch.Tensor

    def attention_mask(self) -> torch.Tensor:
        """Bool (B, 1, L, L), True = may look."""
        length = self.segments.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        key, query = self.segments[:, None, :], self.segments[:, :, None]
        return (causal & ((key == 0) | (key == query))).unsqueeze(1)


def pack_texts(shard: SceneShard, scenes: np.ndarray, prompt: PromptIds) -> TextBatch:
    """Build a batch from scenes of a shard.

    Args:
        shard: Tokens.
        scenes: Scene numbers inside the shard.
        prompt: Fixed ids around verbalization and question.
    """
    rows = []
    for scene in scenes:
        ids = [*prompt.opening, *shard.auxiliary_ids(scene).tolist()]
        start = len(ids)
        segments, positions = [0] * start, list(range(start))
        answered, kinds = [0] * start, [0] * start
        for number, question in enumerate(shard.question_range(scene), start=1):
            asked = [*prompt.before_question, *shard.question_ids(question).tolist(), *prompt.after_question]
            answer = shard.answer_ids(question).tolist()
            ids += asked + answer
            length = len(asked) + len(answer)
            segments += [number] * length
            positions += range(start, start + length)
            answered += [0] * len(asked) + [1] * len(answer)
            kinds += [int(shard.kinds[question]) % len(KIND_NAMES)] * length
        rows.append((ids, segments, positions, answered, kinds))
    longest = max(len(row[0]) for row in rows)
    fills = (0, -1, 0, 0, 0)
    columns = [
        torch.tensor([row[k] + [fill] * (longest - len(row[k])) for row in rows]) for k, fill in enumerate(fills)
    ]
    return TextBatch(columns[0], columns[1], columns[2], columns[3].bool(), columns[4])


def count_right(is_right: torch.Tensor, groups: torch.Tensor, kinds: torch.Tensor) -> dict[str, float]:
    """Questions whose every answer token is right, per kind.

    Args:
        is_right: bool (T,) per answer token.
        groups: int64 (T,) which question a token belongs to.
        kinds: int64 (T,) kind of that question.
    """
    _, index = groups.unique(return_inverse=True)
    size = int(index.max()) + 1 if len(index) else 0
    whole = torch.ones(size, dtype=torch.long).scatter_reduce(0, index, is_right.long(), "amin")
    kind = torch.zeros(size, dtype=torch.long).scatter(0, index, kinds)
    counts: dict[str, float] = {}
    for number, name in enumerate(KIND_NAMES):
        asked = kind == number
        counts[f"asked_{name}"] = float(asked.sum())
        counts[f"right_{name}"] = float(whole[asked].sum())
    return counts


def sorted_batches(shard: SceneShard, batch_size: int, seed: int) -> list[np.ndarray]:
    """Scenes of a shard in batches of like length, in an order drawn from ``seed``."""
    generator = np.random.default_rng(seed)
    spans = np.diff(shard.auxiliary) + np.diff(shard.answers[shard.first_question])
    order = np.argsort(spans + generator.uniform(0, 12, len(spans)), kind="stable")
    batches = [order[i : i + batch_size] for i in range(0, len(order) - batch_size + 1, batch_size)]
    return [batches[i] for i in generator.permutation(len(batches))]


class TextTask:
    """Steps of text pretraining: step -> shard -> batch -> loss.

    Args:
        model: A causal decoder.
        prompt: Fixed ids.
        shards: Folder of shards that are read one after the other, or shards that are read again and again, in another
            order each time.
        batch_size: Scenes per step, over all ranks.
        text_weight: Weight of the loss on the verbalization itself; answers count 1.
        num_scenes: Scenes per shard of a folder.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        prompt: PromptIds,
        shards: Path | Sequence[SceneShard],
        batch_size: int,
        text_weight: float,
        num_scenes: int = 0,
    ) -> None:
        self.model, self.prompt, self.shards = model, prompt, shards
        self.batch_size, self.text_weight = batch_size, text_weight
        sizes = [num_scenes] if isinstance(shards, Path) else [len(shard) for shard in shards]
        self._stops = np.cumsum([size // batch_size for size in sizes])
        self._loaded: tuple[int, SceneShard, list[np.ndarray]] | None = None
        outcome = [f"{word}_{name}" for name in KIND_NAMES for word in ("asked", "right")]
        self.count_names = ["weight", "scenes", "tokens", *outcome]

    def batch(self, step: int, rank: int, num_ranks: int) -> TextBatch:
        """This rank's share of a step's scenes."""
        turn, place = divmod(step, int(self._stops[-1]))
        which = int(np.searchsorted(self._stops, place, side="right"))
        number, place = turn * len(self._stops) + which, place - int(self._stops[which - 1] if which else 0)
        if self._loaded is None or self._loaded[0] != number:
            shard = wait_for_shard(self.shards, number) if isinstance(self.shards, Path) else self.shards[which]
            self._loaded = number, shard, sorted_batches(shard, self.batch_size, number)
        _, shard, batches = self._loaded
        return pack_texts(shard, batches[place][rank::num_ranks], self.prompt)

    def __call__(self, step: int, rank: int, num_ranks: int) -> tuple[torch.Tensor, dict[str, float]]:
        """See :data:`moai.training.loop.StepFunction`."""
        batch = self.batch(step, rank, num_ranks)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.model.model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask(),
                position_ids=batch.position_ids,
                use_cache=False,
            ).last_hidden_state
            is_text = (batch.segments == 0) & (batch.position_ids > len(self.prompt.opening))
            is_target = (is_text | batch.is_answer)[:, 1:] & (batch.segments[:, 1:] >= 0)
            logits = self.model.lm_head(hidden[:, :-1][is_target])
        targets, answers = batch.input_ids[:, 1:][is_target], batch.is_answer[:, 1:][is_target]
        losses = F.cross_entropy(logits.float(), targets, reduction="none")
        weights = torch.where(answers, 1.0, self.text_weight)
        groups = (batch.segments + 1000 * torch.arange(len(batch.segments))[:, None])[:, 1:][is_target]
        is_right = (logits.detach().argmax(-1) == targets)[answers]
        counts = count_right(is_right, groups[answers], batch.kinds[:, 1:][is_target][answers])
        counts |= {"weight": float(weights.sum()), "scenes": float(len(batch.segments))}
        counts["tokens"] = float((batch.segments >= 0).sum())
        return (losses * weights).sum(), counts
