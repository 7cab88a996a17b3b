"""Task of the whole model: images, maps and verbalizations with several questions per scene."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from moai.models.moai.modeling_moai import MoAIForConditionalGeneration
from moai.processing.token_roles import IMAGE_ROLE, LANGUAGE_ROLE
from moai.training.task import Batch
from moai.training.trained_parts import part_of
from recipes.stages import CountingTask

from .compressor_task import pad_verbalizations, recall_counts
from .config import MultimodalSettings
from .phrase_recall import SLOT_GROUPS, PhraseVocabulary
from .prompt import PromptIds
from .scenes import ShardBatches, TokenScene
from .text_task import KIND_NAMES, count_right

__all__ = ["MultimodalBatch", "MultimodalTask", "group_by_length", "normalize_images", "pack_questions"]

# CLIP's statistics, as MoAIImageProcessor has them (https://github.com/openai/CLIP).
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
#: Groups of like length that a micro-batch's questions are read in.
_NUM_LENGTHS = 4


def normalize_images(images: np.ndarray) -> torch.Tensor:
    """uint8 ``(B, H, W, 3)`` -> float32 ``(B, 3, H, W)`` as the vision tower wants them."""
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - _MEAN) / _STD


@dataclass(frozen=True)
class MultimodalBatch:
    """Scenes and, scene by scene, their questions; padded on the right.

    Attributes:
        auxiliary_input_ids: int64 (S, A).
        auxiliary_attention_mask: int64 (S, A).
        pixel_values: float32 (S, 3, H, W), None where there are no images.
        auxiliary_pixel_values: float32 (S, 3, H, W), likewise.
        scene_of_question: int64 (Q,).
        input_ids: int64 (Q, L).
        roles: int64 (Q, L), 0 for answers and padding.
        is_answer: bool (Q, L).
        kinds: int64 (Q,).
    """

    auxiliary_input_ids: torch.Tensor
    auxiliary_attention_mask: torch.Tensor
    pixel_values: torch.Tensor | None
    auxiliary_pixel_values: torch.Tensor | None
    scene_of_question: torch.Tensor
    input_ids: torch.Tensor
    roles: torch.Tensor
    is_answer: torch.Tensor
    kinds: torch.Tensor

    @property
    def lengths(self) -> torch.Tensor:
        """int64 (Q,): tokens of each question, without padding."""
        return ((self.roles > 0) | self.is_answer).sum(dim=1)


def _pad(rows: list[list[int]], fill: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])


def pack_questions(
    scenes: Sequence[TokenScene],
    prompt: PromptIds,
    image_ids: list[int],
    questions_per_scene: int,
    longest_answer: int,
    rng: np.random.Generator,
) -> MultimodalBatch:
    """Build a batch.

    Args:
        scenes: With images, or all without.
        prompt: Fixed ids around a question.
        image_ids: One image's placeholders; left out where there are no images.
        questions_per_scene: How many are drawn from each scene, at most.
        longest_answer: Answers are cut to so many tokens.
        rng: Draws the questions.
    """
    rows, roles, answered, kinds, owners = [], [], [], [], []
    has_images = scenes[0].image is not None
    image_ids = image_ids if has_images else []
    opening = [*prompt.opening, *image_ids]
    for place, scene in enumerate(scenes):
        chosen = rng.permutation(len(scene.questions))[:questions_per_scene]
        for question in (scene.questions[k] for k in chosen):
            asked = [*prompt.before_question, *question.ids, *prompt.after_question]
            answer = question.answer_ids[:longest_answer]
            rows.append([*opening, *asked, *answer])
            role = [LANGUAGE_ROLE] * len(prompt.opening) + [IMAGE_ROLE] * len(image_ids)
            roles.append(role + [LANGUAGE_ROLE] * len(asked) + [0] * len(answer))
            answered.append([0] * (len(opening) + len(asked)) + [1] * len(answer))
            kinds.append(question.kind % len(KIND_NAMES))
            owners.append(place)
    return MultimodalBatch(
        *pad_verbalizations(scenes, prompt.opening[0]),
        normalize_images(np.stack([scene.image for scene in scenes])) if has_images else None,
        normalize_images(np.stack([scene.map for scene in scenes])) if has_images else None,
        torch.tensor(owners),
        _pad(rows, 0),
        _pad(roles, 0),
        _pad(answered, 0).bool(),
        torch.tensor(kinds),
    )


class MultimodalTask(CountingTask):
    """Training of the whole model.

    Args:
        model: The whole model, with a ``recall`` where ``settings.recall_weight`` is not 0.
        settings: One of the recipe's parts that train it.
        prompt: Fixed ids.
        shards: Scenes of a step; images are asked about where there are some.
        vocabulary: How to read verbalizations, for ``model.recall``.
    """

    count_names = [
        f"{word}_{name}"
        for name in (*KIND_NAMES, "without_auxiliary", "word", *SLOT_GROUPS)
        for word in ("asked", "right")
    ]

    def __init__(
        self,
        model: MoAIForConditionalGeneration,
        settings: MultimodalSettings,
        prompt: PromptIds,
        shards: ShardBatches,
        vocabulary: PhraseVocabulary,
    ) -> None:
        super().__init__(model, settings.optimization, settings.shards)
        self.settings, self.prompt, self.shards, self.vocabulary = settings, prompt, shards, vocabulary
        self.image_ids = [model.config.image_token_id] * model.config.num_image_tokens
        self.kind_weights = torch.tensor([settings.kind_weights.get(name, 1.0) for name in KIND_NAMES])

    def questions(self, step: int, place: int = 0) -> MultimodalBatch:
        """A micro-batch's scenes with the questions drawn for it."""
        return pack_questions(
            self.shards(step)[place :: self.num_micro_batches],
            self.prompt,
            self.image_ids,
            self.settings.questions_per_scene,
            self.settings.longest_answer,
            np.random.default_rng((step, place)),
        )

    def batch(self, step: int, place: int) -> Batch:
        """Build a micro-batch: questions, with or without verbalizations."""
        questions = self.questions(step, place)
        inputs = {
            "questions": questions,
            "has_auxiliary": np.random.default_rng((step, 7)).random() >= self.settings.without_auxiliary_share,
        }
        weights = questions.is_answer[:, 1:].sum(dim=1) * self.kind_weights[questions.kinds]
        return Batch(inputs, float(weights.sum()), float(((questions.roles > 0) | questions.is_answer).sum()))

    @torch.no_grad()
    def observed(self, steps: Iterable[int]) -> list[torch.Tensor]:
        """Run some steps' batches without learning from them.

        Returns:
            The ids of each question's language stream, in the order in which the mixers see them.
        """
        rows = []
        for step, place in itertools.product(steps, range(self.num_micro_batches)):
            inputs = self.batch(step, place).inputs
            with torch.autocast("cpu", torch.bfloat16):
                self(inputs)
            asked = inputs["questions"]
            for row in torch.cat(group_by_length(asked)):
                rows.append(asked.input_ids[row][asked.roles[row] == LANGUAGE_ROLE])
        return rows

    def part_of(self, name: str) -> str:
        """The model's part; the heads of `recall` belong to none."""
        return "" if name.startswith("recall.") else part_of(name, self.model.trainable_parts)

    def forward(self, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Cross entropy weighted by kind, and how many answers are right as a whole."""
        batch, model, words = inputs["questions"], self.model.model, self.model.get_input_embeddings()
        features = states = None
        recalled, right = torch.zeros(()), {}
        if batch.pixel_values is not None:
            features = model.get_image_features(batch.pixel_values, return_dict=True).pooler_output
        if inputs["has_auxiliary"]:
            said = batch.auxiliary_input_ids, batch.auxiliary_attention_mask
            states = model.get_auxiliary_states(*said, batch.auxiliary_pixel_values)
            if self.settings.recall_weight > 0:
                recalled, right = self.model.recall(states, words.weight, *said, self.vocabulary)
        parts = [self.read(part, features, states, batch) for part in group_by_length(batch)]
        logits, targets, groups = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        weights = self.kind_weights[batch.kinds[groups]]
        loss = (F.cross_entropy(logits.float(), targets, reduction="none") * weights).sum()
        loss = loss + self.settings.recall_weight * weights.sum() * recalled
        counts = count_right(logits.detach().argmax(-1) == targets, groups, batch.kinds[groups])
        if not inputs["has_auxiliary"]:
            counts = {
                f"{word}_without_auxiliary": sum(counts[f"{word}_{name}"] for name in KIND_NAMES)
                for word in ("asked", "right")
            }
        return loss, self.counters(counts | recall_counts(right))

    def read(
        self,
        part: torch.Tensor,
        features: torch.Tensor | None,
        states: torch.Tensor | None,
        batch: MultimodalBatch,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Read some of the questions.

        Args:
            part: int64 (P,) which of them.
            features: ``(S, patches, D)`` of the scenes' images, or None.
            states: ``(S, N, D)`` of their verbalizations, or None.
            batch: What they are chosen from.

        Returns:
            Logits ``(T, V)`` of the answers' tokens, what is right ``(T,)``, and the question each belongs to ``(T,)``.
        """
        scenes, used = batch.scene_of_question[part], int(batch.lengths[part].max())
        input_ids, is_target = batch.input_ids[part, :used], batch.is_answer[part, 1:used]
        hidden = self.model.model(
            input_ids=input_ids,
            mm_token_type_ids=batch.roles[part, :used],
            image_features=None if features is None else features[scenes],
            auxiliary_states=None if states is None else states[scenes],
            routing="gated",
            use_cache=False,
            return_dict=True,
        ).last_hidden_state
        logits = self.model.lm_head(hidden[:, :-1][is_target])
        return logits, input_ids[:, 1:][is_target], part[:, None].expand_as(is_target)[is_target]


def group_by_length(batch: MultimodalBatch) -> tuple[torch.Tensor, ...]:
    """Group questions of like length: padded to the longest of all, two thirds of a batch are padding.

    Args:
        batch: Whose questions.

    Returns:
        int64 places of the questions, group by group.
    """
    return batch.lengths.argsort(stable=True).chunk(_NUM_LENGTHS)
