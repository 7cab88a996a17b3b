"""Text pretraining: the decoder learns to read verbalizations as plain text in its prompt.

One sequence holds a verbalization and all questions about it. Each question sees the verbalization and itself only
and counts its positions from the verbalization's end, so that a packed row equals as many single prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from moai.scenes.scenes import QUESTION_KINDS
from moai.training.task import Batch
from moai.training.train_settings import OptimizationSettings
from recipes.stages import CountingTask

from .prompt import PromptIds
from .scenes import SceneSettings, ShardBatches, TokenScene

__all__ = ["TextBatch", "TextTask", "pack_texts"]

KIND_NAMES = (*QUESTION_KINDS, "listing")  # kind -1 is the last


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


def pack_texts(scenes: Sequence[TokenScene], prompt: PromptIds) -> TextBatch:
    """Build a batch.

    Args:
        scenes: Each is a row.
        prompt: Fixed ids around verbalization and question.
    """
    rows = []
    for scene in scenes:
        ids = [*prompt.opening, *scene.auxiliary_ids]
        start = len(ids)
        segments, positions = [0] * start, list(range(start))
        answered, kinds = [0] * start, [0] * start
        for number, question in enumerate(scene.questions, start=1):
            asked = [*prompt.before_question, *question.ids, *prompt.after_question]
            ids += asked + question.answer_ids
            length = len(asked) + len(question.answer_ids)
            segments += [number] * length
            positions += range(start, start + length)
            answered += [0] * len(asked) + [1] * len(question.answer_ids)
            kinds += [question.kind % len(KIND_NAMES)] * length
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


class TextTask(CountingTask):
    """Text pretraining: a decoder learns to answer behind a verbalization, and a little to write one.

    Args:
        model: A causal decoder.
        prompt: Fixed ids.
        shards: Scenes of a step.
        optimization: How.
        text_weight: Weight of the loss on the verbalization itself; answers count 1.
        data: See :class:`recipes.stages.CountingTask`.
    """

    count_names = [f"{word}_{name}" for name in KIND_NAMES for word in ("asked", "right")]

    def __init__(
        self,
        model: LlamaForCausalLM,
        prompt: PromptIds,
        shards: ShardBatches,
        optimization: OptimizationSettings,
        text_weight: float,
        data: SceneSettings | dict[str, Any] | None = None,
    ) -> None:
        super().__init__(model, optimization, data)
        self.prompt, self.shards, self.text_weight = prompt, shards, text_weight

    def batch(self, step: int, place: int) -> Batch:
        """See :class:`TextBatch`."""
        texts = pack_texts(self.shards(step)[place :: self.num_micro_batches], self.prompt)
        is_target = self._is_target(texts)
        weights = torch.where(texts.is_answer[:, 1:][is_target], 1.0, self.text_weight)
        return Batch(texts, float(weights.sum()), float((texts.segments >= 0).sum()))

    def _is_target(self, batch: TextBatch) -> torch.Tensor:
        """Bool (B, L - 1): the next token carries a loss."""
        is_text = (batch.segments == 0) & (batch.position_ids > len(self.prompt.opening))
        return (is_text | batch.is_answer)[:, 1:] & (batch.segments[:, 1:] >= 0)

    def forward(self, inputs: TextBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Cross entropy, and how many answers are right as a whole."""
        hidden = self.model.model(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask(),
            position_ids=inputs.position_ids,
            use_cache=False,
        ).last_hidden_state
        is_target = self._is_target(inputs)
        logits = self.model.lm_head(hidden[:, :-1][is_target])
        targets, answers = inputs.input_ids[:, 1:][is_target], inputs.is_answer[:, 1:][is_target]
        losses = F.cross_entropy(logits.float(), targets, reduction="none")
        weights = torch.where(answers, 1.0, self.text_weight)
        groups = (inputs.segments + 1000 * torch.arange(len(inputs.segments))[:, None])[:, 1:][is_target]
        is_right = (logits.detach().argmax(-1) == targets)[answers]
        counts = count_right(is_right, groups[answers], inputs.kinds[:, 1:][is_target][answers])
        return (losses * weights).sum(), self.counters(counts)
