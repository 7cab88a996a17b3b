"""Scenes as tokens: shards of noisy verbalizations with questions and answers.

A shard is a function of its settings and number alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import numpy as np
from pydantic import StrictBool, StrictInt

from moai.models.moai.chat_templates import without_capitals
from moai.models.moai.tokenization_internlm2 import InternLM2Tokenizer
from moai.scenes.questions import PIXEL_KINDS, SceneQuestion
from moai.scenes.renaming import rename_scene
from moai.scenes.scenes import QUESTION_KINDS, Scenes, add_noise
from moai.scenes.vocabulary import STUFF_NAMES
from moai.scenes.wordings import LISTINGS
from moai.settings import Number, Positive, Share, settings
from verbalizers.core.merging import keep_segments
from verbalizers.core.scene import SCENE_FIELDS, render_segmentation_map, verbalize_scene
from verbalizers.core.structures import Detections, Scene
from verbalizers.core.words import WordSettings

from .patch_recall import PatchPieces, PieceVocabulary, patch_pieces
from .prompt import prompt_ids

__all__ = [
    "SHARD_FORM",
    "SceneSettings",
    "ShardBatches",
    "TokenQuestion",
    "TokenScene",
    "build_shard",
]


#: The form in which shards' findings are said, and those of the checkpoints that learn from them.
SHARD_FORM: dict[str, Any] = {"quote_text": True, "locate_text": True, "order_by_name": True, "max_relations": 20}
_SHARD_WORDS = WordSettings(**SHARD_FORM)
_RELATION_KINDS = ("ground_relation", "object_relation")
#: Scenes drawn per scene of a shard, where some are left out.
_SPARE = 6


@settings
class SceneSettings:
    """What is in the shards.

    Attributes:
        num_scenes: Scenes per shard.
        num_passes: How often each shard is read before the next one is made, each time in another order.
        num_questions: Questions per scene at most.
        image_size: Height and width in pixels at which truth is measured, and of the maps and images.
        seed: Seed of the stream.
        curriculum: Pairs (first shard, most objects), ascending: scenes grow from few objects to many. Some have none.
        truth_share: Share of scenes whose verbalization is the truth; the others have noise.
        listing_share: Share of scenes with a question for the whole verbalization, answered by what the model was
            given, word for word: a dense signal whose every token can be known.
        kinds: Kinds of the generator's questions; one named twice is asked twice as often. Without images those that
            only pixels answer are left out.
        sign_probability: How often a scene has a sign with words.
        made_up_share: Share of made-up words and numbers on signs.
        forged_share: Share of the scenes with signs of which one poses as a prediction.
        image_noise: Share of images that are grey, bright or dark, or in a grey frame.
        partial_share: Share of scenes in which only some verbalizers spoke, half of the time the OCR alone.
        detected_share: Share of scenes of which a detector tells the things, and the segmenter no more than the stuff
            (`WordSettings.detections_first`).
        renamed_share: Share of scenes without images in which things have other names (:mod:`moai.scenes.renaming`).
        closeup_share: Share of scenes of which a part is shown, one thing large in it, as photographs show things.
        with_images: Also store the image and the segmentation map.
        patch_size: Side in pixels of the patches of which is also stored what they show; 0 = it is not.
        kind_shares: Share of a kind's questions that are kept, 1 where none is given; a scene without any is left out.
        unrelated_share: Share of scenes about whose relations nothing is asked that are kept: few scenes have such
            questions.
    """

    num_scenes: StrictInt = 2048
    num_passes: Positive = 1
    num_questions: StrictInt = 8
    image_size: StrictInt = 96
    seed: StrictInt = 0
    curriculum: tuple[tuple[int, int], ...] = ((0, 9),)
    truth_share: Number = 0.2
    listing_share: Number = 1.0
    kinds: tuple[str, ...] = QUESTION_KINDS
    sign_probability: Number = 0.6
    made_up_share: Number = 0.4
    forged_share: Number = 0.25
    image_noise: Number = 0.3
    partial_share: Number = 0.0
    detected_share: Number = 0.0
    renamed_share: Number = 0.0
    closeup_share: Share = 0.0
    with_images: StrictBool = False
    patch_size: StrictInt = 0
    kind_shares: dict[str, Number] = field(default_factory=dict)
    unrelated_share: Number = 1.0

    def __post_init__(self) -> None:
        if self.with_images and self.renamed_share > 0:
            raise ValueError(
                f"expected `renamed_share` 0 with `with_images`, got {self.renamed_share}: images show what "
                "things are. Leave one of them out."
            )

    def most_objects(self, shard: int) -> int:
        """Largest number of objects in the scenes of a shard."""
        return [most for first, most in self.curriculum if first <= shard][-1]


@dataclass(frozen=True)
class TokenQuestion:
    """A question about a scene.

    Attributes:
        ids: Of the question, with its leading space; before it the turns before, without what opens the first.
        answer_ids: Of the answer, with its leading space and the end token.
        kind: Index into ``QUESTION_KINDS``; -1 = the verbalization itself is asked for.
    """

    ids: list[int]
    answer_ids: list[int]
    kind: int


@dataclass(frozen=True)
class TokenScene:
    """A scene as a model reads it.

    Attributes:
        auxiliary_ids: Of the verbalization, without BOS.
        questions: About the scene.
        image: uint8 (H, W, 3), where images are wanted.
        map: Segmentation map, likewise.
        pieces: What the image's patches show, where that is asked for.
    """

    auxiliary_ids: list[int]
    questions: list[TokenQuestion]
    image: np.ndarray | None = None
    map: np.ndarray | None = None
    pieces: PatchPieces | None = None


def _sample_kinds(rng: Random, partial_share: float) -> tuple[str, ...]:
    """Draw the kinds that are verbalized."""
    kinds = tuple(SCENE_FIELDS)
    if partial_share <= 0 or rng.random() >= partial_share:
        return kinds
    return ("ocr",) if rng.random() < 0.5 else tuple(kind for kind in kinds if rng.random() < 0.5)


def _detect_things(found: Scene, rng: Random) -> Scene:
    """What is said of a scene when detections come first: the things among its segments as detections, in any order."""
    segments, detections = found.segments, found.detections
    if segments is None or detections is None:
        return found
    is_stuff = [name in STUFF_NAMES for name in segments.class_names]
    things = [row for row in np.flatnonzero(segments.pixel_counts) if not is_stuff[row]]
    names = [*detections.class_names, *(segments.class_names[row] for row in things)]
    boxes = np.concatenate([detections.boxes_xyxy, segments.boxes_xyxy[things]])
    confidence = np.concatenate([detections.confidence, segments.confidence[things]])
    order = rng.sample(range(len(names)), len(names))
    return replace(
        found,
        segments=keep_segments(segments, np.flatnonzero(is_stuff).tolist()),
        detections=Detections(
            boxes[order], tuple(names[k] for k in order), confidence[order], detections.image_size_hw
        ),
    )


def _choose_questions(
    questions: Sequence[SceneQuestion], settings: SceneSettings, rng: Random
) -> Sequence[SceneQuestion]:
    """Those of a scene that are kept; none where the scene is left out."""
    if not settings.kind_shares and settings.unrelated_share >= 1:
        return list(questions)
    kept = [asked for asked in questions if rng.random() < settings.kind_shares.get(asked.kind, 1.0)]
    is_related = any(asked.kind in _RELATION_KINDS for asked in kept)
    return kept if is_related or rng.random() < settings.unrelated_share else []


def build_shard(settings: SceneSettings, shard: int, tokenizer: InternLM2Tokenizer) -> list[TokenScene]:
    """Make the scenes of a shard.

    Args:
        settings: What is in it.
        shard: Its number.
        tokenizer: Vocabulary.

    Returns:
        At most ``num_scenes`` of them, of scenes that no other shard has.
    """
    reach = settings.num_scenes * (_SPARE if settings.kind_shares or settings.unrelated_share < 1 else 1)
    encode, end, prompt = tokenizer.sp_model.encode, tokenizer.eos_token_id, prompt_ids(tokenizer)
    stream = Scenes(
        "train",
        seed=settings.seed,
        image_size=settings.image_size,
        num_objects=(0, settings.most_objects(shard)),
        num_questions=settings.num_questions,
        kinds=tuple(kind for kind in settings.kinds if settings.with_images or kind not in PIXEL_KINDS),
        sign_probability=settings.sign_probability,
        made_up_share=settings.made_up_share,
        forged_share=settings.forged_share,
        image_noise=settings.image_noise,
        closeup_share=settings.closeup_share,
        start=shard * reach,
        length=reach,
    )
    vocabulary = PieceVocabulary.from_tokenizer(tokenizer)
    scenes = []
    for sample in stream:
        rng = Random(f"shard {settings.seed} {sample.index}")
        found = sample.truth if rng.random() < settings.truth_share else add_noise(sample.truth, rng)
        spoken = _sample_kinds(rng, settings.partial_share)
        asked_about = _choose_questions(sample.questions, settings, rng)
        if settings.renamed_share > 0 and rng.random() < settings.renamed_share:
            found, asked_about = rename_scene(found, asked_about, rng)
        is_detected = settings.detected_share > 0 and rng.random() < settings.detected_share
        is_detected &= "detection" in spoken  # else segments tell the things
        text = verbalize_scene(_detect_things(found, rng) if is_detected else found, spoken, settings=_SHARD_WORDS)
        if sample.questions and not asked_about:
            continue
        questions = []
        for asked in asked_about:
            ids: list[int] = []
            for before, answer in asked.earlier:
                ids += [*encode(f" {without_capitals(before)}"), *prompt.after_question, *encode(f" {answer}"), end]
                ids += prompt.before_question
            ids += encode(f" {without_capitals(asked.question)}")
            answer_ids = [*encode(f" {asked.answer}"), end]
            questions.append(TokenQuestion(ids, answer_ids, QUESTION_KINDS.index(asked.kind)))
        if text and rng.random() < settings.listing_share:
            asked = encode(f" {rng.choice(LISTINGS)}")
            questions.append(TokenQuestion(asked, [*encode(f" {text}"), end], -1))
        image = segmentation_map = None
        if settings.with_images:
            segments = found.segments if "segmentation" in spoken else None
            image, segmentation_map = sample.image, render_segmentation_map(segments, sample.image_size_hw)
        pieces = patch_pieces(sample, settings.patch_size, vocabulary) if settings.patch_size else None
        scenes.append(TokenScene(encode(text), questions, image, segmentation_map, pieces))
        if len(scenes) == settings.num_scenes:
            break
    return scenes


class ShardBatches:
    """Scenes of a step: shard after shard, scenes of like length together, as a function of the step alone.

    Args:
        shards: A shard by its number, or shards that are read again and again, in another order each time.
        batch_size: Scenes per step.
        num_scenes: Scenes per shard, where a function makes them.
        num_passes: How often such a shard is read before the next one.
    """

    def __init__(
        self,
        shards: Callable[[int], list[TokenScene]] | Sequence[list[TokenScene]],
        batch_size: int,
        num_scenes: int = 0,
        num_passes: int = 1,
    ) -> None:
        self.shards, self.batch_size, self.num_passes = shards, batch_size, num_passes
        sizes = [num_scenes] if callable(shards) else [len(shard) for shard in shards]
        self._stops = np.cumsum([size // batch_size for size in sizes])
        self._made: tuple[int, list[TokenScene]] | None = None
        self._sorted: tuple[int, list[list[TokenScene]]] | None = None

    @classmethod
    def from_settings(cls, settings: SceneSettings, batch_size: int, tokenizer: InternLM2Tokenizer) -> ShardBatches:
        """Shards made when they are needed: one takes about as long as five steps."""
        return cls(
            lambda number: build_shard(settings, number, tokenizer),
            batch_size,
            settings.num_scenes,
            settings.num_passes,
        )

    def __call__(self, step: int) -> list[TokenScene]:
        """A step's scenes."""
        turn, place = divmod(step, int(self._stops[-1]))
        which = int(np.searchsorted(self._stops, place, side="right"))
        number, place = turn * len(self._stops) + which, place - int(self._stops[which - 1] if which else 0)
        if self._sorted is None or self._sorted[0] != number:
            self._sorted = number, _sorted_batches(self._shard(number, which), self.batch_size, number)
        return self._sorted[1][place]

    def _shard(self, number: int, which: int) -> list[TokenScene]:
        if not callable(self.shards):
            return self.shards[which]
        number //= self.num_passes
        if self._made is None or self._made[0] != number:
            self._made = self._sorted = None  # two shards of images need not be in memory at once
            self._made = number, self.shards(number)
        return self._made[1]


def _sorted_batches(scenes: list[TokenScene], batch_size: int, seed: int) -> list[list[TokenScene]]:
    """Scenes in batches of like length, in an order drawn from ``seed``."""
    generator = np.random.default_rng(seed)
    spans = [len(s.auxiliary_ids) + sum(len(question.answer_ids) for question in s.questions) for s in scenes]
    order = np.argsort(np.array(spans) + generator.uniform(0, 12, len(spans)), kind="stable")
    starts = generator.permutation(len(order) // batch_size) * batch_size
    return [[scenes[index] for index in order[start : start + batch_size]] for start in starts]
