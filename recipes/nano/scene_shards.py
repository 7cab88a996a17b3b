"""Scenes as tokens: shards of noisy verbalizations with questions and answers.

A shard is a function of its settings and number alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from pydantic import StrictBool, StrictInt

from moai.processing.tokenization_internlm2 import InternLM2Tokenizer
from moai.scenes.scenes import QUESTION_KINDS, Scenes, add_noise
from moai.settings import Number, settings
from verbalizers.core.scene import SCENE_FIELDS, render_segmentation_map, verbalize_scene

__all__ = [
    "LISTING_QUESTIONS",
    "SceneShard",
    "ShardBatches",
    "ShardSettings",
    "build_shard",
    "join_scenes",
]

#: Questions of the generator whose answer is a verbalization. Their target in training is the verbalization that the
#: model was given, word for word: a dense signal whose every token can be known.
LISTING_QUESTIONS = ("Describe the picture with boxes.", "List everything in the image with its box.")


@settings
class ShardSettings:
    """What is in the shards.

    Attributes:
        num_scenes: Scenes per shard.
        num_questions: Questions per scene at most.
        image_size: Height and width in pixels at which truth is measured, and of the maps and pictures.
        seed: Seed of the stream.
        curriculum: Pairs (first shard, most objects), ascending: scenes grow from few objects to many.
        truth_share: Share of scenes whose verbalization is the truth; the others have noise.
        listing_share: Share of scenes with a question for the whole verbalization.
        kinds: Kinds of the generator's questions; one named twice is asked twice as often.
        sign_probability: How often a scene has a sign with words.
        unseen_word_share: Share of made-up words and numbers on signs; None = the test split's mixture.
        partial_share: Share of scenes in which only some verbalizers spoke, half of the time the OCR alone.
        with_pictures: Also store the picture and the segmentation map.
    """

    num_scenes: StrictInt = 2048
    num_questions: StrictInt = 8
    image_size: StrictInt = 96
    seed: StrictInt = 0
    curriculum: tuple[tuple[int, int], ...] = ((0, 6),)
    truth_share: Number = 0.2
    listing_share: Number = 1.0
    kinds: tuple[str, ...] = QUESTION_KINDS
    sign_probability: Number = 0.6
    unseen_word_share: Number | None = None
    partial_share: Number = 0.0
    with_pictures: StrictBool = False

    def most_objects(self, shard: int) -> int:
        """Largest number of objects in the scenes of a shard."""
        return [most for first, most in self.curriculum if first <= shard][-1]


@dataclass(frozen=True)
class SceneShard:
    """Token ids of many scenes.

    Attributes:
        tokens: Flat uint16 ids.
        auxiliary: int64 (S + 1,) offsets of the verbalizations in ``tokens``.
        questions: int64 (Q + 1,) offsets of the questions.
        answers: int64 (Q + 1,) offsets of the answers, end token included.
        kinds: int8 (Q,) index into ``QUESTION_KINDS``; -1 = the verbalization itself is asked for.
        first_question: int64 (S + 1,) which questions belong to a scene.
        pictures: uint8 (S, H, W, 3) or empty.
        maps: uint8 (S, H, W, 3) or empty.
    """

    tokens: np.ndarray
    auxiliary: np.ndarray
    questions: np.ndarray
    answers: np.ndarray
    kinds: np.ndarray
    first_question: np.ndarray
    pictures: np.ndarray
    maps: np.ndarray

    def __len__(self) -> int:
        return len(self.first_question) - 1

    def auxiliary_ids(self, scene: int) -> np.ndarray:
        """Verbalization of a scene, without BOS."""
        return self.tokens[self.auxiliary[scene] : self.auxiliary[scene + 1]]

    def question_range(self, scene: int) -> range:
        """Questions of a scene."""
        return range(int(self.first_question[scene]), int(self.first_question[scene + 1]))

    def question_ids(self, question: int) -> np.ndarray:
        """Ids of a question with its leading space."""
        return self.tokens[self.questions[question] : self.questions[question + 1]]

    def answer_ids(self, question: int) -> np.ndarray:
        """Ids of an answer with its leading space and the end token."""
        return self.tokens[self.answers[question] : self.answers[question + 1]]


def _sample_kinds(rng: Random, partial_share: float) -> tuple[str, ...]:
    """Which verbalizers spoke."""
    kinds = tuple(SCENE_FIELDS)
    if partial_share <= 0 or rng.random() >= partial_share:
        return kinds
    return ("ocr",) if rng.random() < 0.5 else tuple(kind for kind in kinds if rng.random() < 0.5)


def build_shard(settings: ShardSettings, shard: int, tokenizer: InternLM2Tokenizer) -> SceneShard:
    """Make one shard.

    Args:
        settings: What is in it.
        shard: Its number; scenes ``shard * num_scenes`` and following.
        tokenizer: Vocabulary; at most 65,535 pieces.
    """
    encode, end = tokenizer.sp_model.encode, tokenizer.eos_token_id
    stream = Scenes(
        "train",
        seed=settings.seed,
        image_size=settings.image_size,
        num_objects=(1, settings.most_objects(shard)),
        num_questions=settings.num_questions,
        kinds=settings.kinds,
        sign_probability=settings.sign_probability,
        unseen_word_share=settings.unseen_word_share,
        start=shard * settings.num_scenes,
        length=settings.num_scenes,
    )
    scenes, pictures, maps = [], [], []
    for sample in stream:
        rng = Random(f"shard {settings.seed} {sample.index}")
        found = sample.truth if rng.random() < settings.truth_share else add_noise(sample.truth, rng)
        spoken = _sample_kinds(rng, settings.partial_share)
        words = verbalize_scene(found, spoken)
        questions: list[tuple[list[int], list[int], int]] = []
        for asked in sample.questions:
            if asked.question in LISTING_QUESTIONS:
                continue  # its answer is the truth's verbalization, which the model was not given
            answer = [*encode(f" {asked.answer}"), end]
            questions.append((encode(f" {asked.question}"), answer, QUESTION_KINDS.index(asked.kind)))
        if words and rng.random() < settings.listing_share:
            questions.append((encode(f" {rng.choice(LISTING_QUESTIONS)}"), [*encode(f" {words}"), end], -1))
        scenes.append((encode(words), questions))
        if settings.with_pictures:
            pictures.append(sample.image)
            segments = found.segments if "segmentation" in spoken else None
            maps.append(render_segmentation_map(segments, sample.image_size_hw))
    return join_scenes(scenes, pictures, maps)


def join_scenes(
    scenes: Sequence[tuple[Sequence[int], Sequence[tuple[Sequence[int], Sequence[int], int]]]],
    pictures: Sequence[np.ndarray] = (),
    maps: Sequence[np.ndarray] = (),
) -> SceneShard:
    """A shard from scenes.

    Args:
        scenes: For each the ids of its verbalization, and its questions: ids, ids of the answer, kind.
        pictures: uint8 (H, W, 3) for each, or none at all.
        maps: Likewise.
    """
    asked = [question for _, questions in scenes for question in questions]
    groups = [said for said, _ in scenes], [words for words, _, _ in asked], [answer for _, answer, _ in asked]
    starts = np.cumsum([0, *(sum(map(len, group)) for group in groups)])
    offsets = [start + np.cumsum([0, *map(len, group)]) for start, group in zip(starts, groups, strict=False)]
    empty = np.zeros((0, 0, 0, 3), np.uint8)
    return SceneShard(
        np.array([token for group in groups for ids in group for token in ids], dtype=np.uint16),
        *offsets,
        np.array([kind for _, _, kind in asked], dtype=np.int8),
        np.cumsum([0, *(len(questions) for _, questions in scenes)], dtype=np.int64),
        np.stack(pictures) if len(pictures) else empty,
        np.stack(maps) if len(maps) else empty,
    )


class ShardBatches:
    """Scenes of a step: shard after shard, scenes of like length together, as a function of the step alone.

    Args:
        shards: A shard by its number, or shards that are read again and again, in another order each time.
        batch_size: Scenes per step.
        num_scenes: Scenes per shard, where a function makes them.
    """

    def __init__(
        self, shards: Callable[[int], SceneShard] | Sequence[SceneShard], batch_size: int, num_scenes: int = 0
    ) -> None:
        self.shards, self.batch_size = shards, batch_size
        sizes = [num_scenes] if callable(shards) else [len(shard) for shard in shards]
        self._stops = np.cumsum([size // batch_size for size in sizes])
        self._loaded: tuple[int, SceneShard, list[np.ndarray]] | None = None

    @classmethod
    def from_settings(cls, settings: ShardSettings, batch_size: int, tokenizer: InternLM2Tokenizer) -> ShardBatches:
        """Shards made when they are needed: one takes about as long as five steps."""
        return cls(lambda number: build_shard(settings, number, tokenizer), batch_size, settings.num_scenes)

    def __call__(self, step: int) -> tuple[SceneShard, np.ndarray]:
        """A shard, and the numbers of the step's scenes in it."""
        turn, place = divmod(step, int(self._stops[-1]))
        which = int(np.searchsorted(self._stops, place, side="right"))
        number, place = turn * len(self._stops) + which, place - int(self._stops[which - 1] if which else 0)
        if self._loaded is None or self._loaded[0] != number:
            self._loaded = None  # two shards of images need not be in memory at once
            shard = self.shards(number) if callable(self.shards) else self.shards[which]
            self._loaded = number, shard, _sorted_batches(shard, self.batch_size, number)
        _, shard, batches = self._loaded
        return shard, batches[place]


def _sorted_batches(shard: SceneShard, batch_size: int, seed: int) -> list[np.ndarray]:
    """Scenes of a shard in batches of like length, in an order drawn from ``seed``."""
    generator = np.random.default_rng(seed)
    spans = np.diff(shard.auxiliary) + np.diff(shard.answers[shard.first_question])
    order = np.argsort(spans + generator.uniform(0, 12, len(spans)), kind="stable")
    batches = [order[i : i + batch_size] for i in range(0, len(order) - batch_size + 1, batch_size)]
    return [batches[i] for i in generator.permutation(len(batches))]
