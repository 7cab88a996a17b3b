"""Scenes: an endless, seeded stream of images whose truth is known, with questions about them.

    from moai.scenes.scenes import Scenes

    scenes = Scenes(split="train", image_size=448)
    sample = scenes[0]
    sample.image        # uint8 (448, 448, 3), painted when first asked for
    sample.truth        # verbalizers.core.structures.Scene
    sample.questions    # tuple of SceneQuestion(kind, question, answer)

A scene is a function of (seed, split, index) alone: the same in every process and on every run. Splits never share a
random seed, since numpy's SeedSequence hashes split and index into it, nor a word or number on a sign; two thirds of
the wordings of questions are trained, all are tested.
"""

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random

import numpy as np

from moai.scenes.closeups import Closeup, paint_things, sample_closeup
from moai.scenes.layout import SceneLayout, sample_layout
from moai.scenes.noise import ImageNoise, add_noise, sample_image_noise, spoil_image
from moai.scenes.questions import QUESTION_KINDS, SceneQuestion, ask_questions
from moai.scenes.signs import SPLITS, SignText
from moai.scenes.truth import EntityMap, build_entity_map, build_truth
from moai.scenes.vocabulary import OBJECT_CLASSES
from verbalizers.core.scene import verbalize_scene
from verbalizers.core.structures import Scene

__all__ = [
    "QUESTION_KINDS",
    "SCENES_VERSION",
    "SPLITS",
    "SceneQuestion",
    "SceneSample",
    "Scenes",
    "add_noise",
    "scene_seed",
]

_UNSEEN_SIGN = SignText(("SIGN",), 0)  # nobody sees the foil
#: Raised when the same settings give other scenes or questions than before, but for what only training has: its
#: wordings, closeups, blanks, other names; figures name it.
SCENES_VERSION = 2


def scene_seed(seed: int, split: str, index: int) -> int:
    """128-bit seed of one scene.

    Args:
        seed: the stream's seed, at least 0.
        split: one of `SPLITS`.
        index: the scene's number, at least 0.

    Raises:
        ValueError: an unknown split or a negative number.
    """
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {SPLITS}, got {split!r}.")
    if seed < 0 or index < 0:
        raise ValueError(f"`seed` and `index` must be at least 0, got {seed} and {index}. Count scenes from 0.")
    words = np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split), index)).generate_state(4)
    return int.from_bytes(words.astype("<u4").tobytes(), "little")


@dataclass(frozen=True)
class SceneSample:
    """One scene with its truth and questions.

    Attributes:
        index: its number in the stream.
        seed: what all its randomness came from.
        layout: where everything is, in the unit square.
        image_size: height and width of the image in pixels.
        truth: what perfect verbalizers would find.
        questions: with answers from the truth.
        image_noise: what is wrong with the image; None = nothing.
        closeup: the part of the layout that the image shows; None = all of it.
    """

    index: int
    seed: int
    layout: SceneLayout
    image_size: int
    entities: EntityMap
    truth: Scene
    questions: tuple[SceneQuestion, ...]
    image_noise: ImageNoise | None = None
    closeup: Closeup | None = None

    @property
    def image_size_hw(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return self.image_size, self.image_size

    @cached_property
    def image(self) -> np.ndarray:
        """uint8 (H, W, 3) RGB, painted on first use."""
        from moai.scenes.rendering import render_scene

        size, noise = self.image_size, self.image_noise
        if self.closeup is not None:
            x, y = self.closeup.corner(size)
            scene = render_scene(self.layout, self.closeup.inner_size(size))
            image = scene[-y : size - y, -x : size - x]
        else:
            image = render_scene(self.layout, size if noise is None else noise.inner_size(size))
        return image if noise is None else spoil_image(image, size, noise)


class Scenes:
    """A stream of scenes with random access.

    Iterating never ends unless `length` is given; `scenes[index]` makes one scene. Objects of this class are small and
    can be pickled to workers.

    Args:
        split: "train", "validation" or "test".
        seed: another seed is another stream.
        image_size: height and width in pixels, at least 32. Truth is exact at this size.
        num_objects: fewest and most objects per scene (signs come on top): the difficulty. Some questions need
            several things to choose between; scenes of few objects ask the others.
        num_questions: questions per scene at most.
        kinds: which of `QUESTION_KINDS` to ask.
        sign_probability: how often a scene has a sign with words.
        made_up_share: share of made-up words and numbers on signs.
        forged_share: share of the scenes with signs of which one poses as a prediction.
        image_noise: share of images that are grey, bright or dark, or in a grey frame: for training.
        closeup_share: share of scenes that have no signs, of which the image shows a part with one thing large in it,
            where one was found, and which are asked about whatever can be guessed: for training.
        blank_share: share of scenes in which there is nothing at all, images of one colour or of what has no name: for
            training.
        start: first index of the iteration.
        length: number of scenes of the iteration; None = endless.
        names: of the things that there are, of `OBJECT_CLASSES`; none = all of them, in groups too.
        has_one_wording: whether each form of a question is asked in the same words.

    Raises:
        ValueError: a setting outside its range.
    """

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        image_size: int = 448,
        num_objects: tuple[int, int] = (0, 9),
        num_questions: int = 7,
        kinds: tuple[str, ...] = QUESTION_KINDS,
        sign_probability: float = 0.6,
        made_up_share: float = 0.4,
        forged_share: float = 0.25,
        image_noise: float = 0.0,
        start: int = 0,
        length: int | None = None,
        names: tuple[str, ...] = (),
        has_one_wording: bool = False,
        closeup_share: float = 0.0,
        blank_share: float = 0.0,
    ) -> None:
        scene_seed(seed, split, start)
        low, high = num_objects
        if not 0 <= low <= high <= 12:
            raise ValueError(f"`num_objects` must satisfy 0 <= fewest <= most <= 12, got {num_objects}.")
        if image_size < 32:
            raise ValueError(f"`image_size` must be at least 32 pixels, got {image_size}.")
        shares = {"sign_probability": sign_probability, "made_up_share": made_up_share}
        shares |= {"forged_share": forged_share, "image_noise": image_noise, "closeup_share": closeup_share}
        shares |= {"blank_share": blank_share}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"`{name}` must lie in [0, 1], got {share}.")
        if unknown := set(kinds) - set(QUESTION_KINDS):
            raise ValueError(f"`kinds` must be among {QUESTION_KINDS}, got {sorted(unknown)}. Remove those.")
        if unknown := set(names) - set(OBJECT_CLASSES):
            raise ValueError(f"`names` must be among the names of Scenes' objects, got {sorted(unknown)}.")
        self.names, self.has_one_wording = tuple(names), has_one_wording
        self.split, self.seed, self.image_size = split, seed, image_size
        self.num_objects, self.num_questions, self.kinds = (low, high), num_questions, tuple(kinds)
        self.sign_probability, self.made_up_share = sign_probability, made_up_share
        self.forged_share, self.image_noise = forged_share, image_noise
        self.closeup_share, self.blank_share = closeup_share, blank_share
        self.start = start
        self.stop = None if length is None else start + length

    def __getitem__(self, index: int) -> SceneSample:
        """Make scene number `index` (at least 0), whatever `start` and `length` say."""
        seed = scene_seed(self.seed, self.split, index)
        rng = Random(seed)
        is_blank = self.blank_share > 0 and Random(f"blank {seed}").random() < self.blank_share
        is_close = self.closeup_share > 0 and Random(f"closeup {seed}").random() < self.closeup_share
        is_close &= not is_blank
        sign_probability = 0.0 if is_close else self.sign_probability
        options = (self.num_objects, sign_probability, self.made_up_share, self.split, self.forged_share)
        layout = sample_layout(rng, *options, names=self.names)
        if is_blank:
            layout = layout.emptied()
        closeup = sample_closeup(Random(f"part {seed}"), layout) if is_close else None
        if closeup is not None:
            layout = paint_things(Random(f"paint {seed}"), layout)
        noise = sample_image_noise(Random(f"image {seed}"), self.image_noise)
        if closeup is not None and noise is not None:
            noise = replace(noise, frame=(0.0, 0.0, 0.0))
        inner, corner = self.image_size, (0, 0)
        if (seen := closeup or noise) is not None:
            inner, corner = seen.inner_size(self.image_size), seen.corner(self.image_size)
        entities = build_entity_map(layout, inner).framed(self.image_size, corner)
        truth = build_truth(layout, entities, inner, corner)
        foil = sample_layout(rng, *options, scenery=layout.scenery, sign_text=_UNSEEN_SIGN, names=self.names)
        questions = ask_questions(
            truth, layout if closeup is None else closeup.shown_layout(layout), foil, rng, self.num_questions,
            self.kinds, may_be_new=self.split != "train", has_colour=noise is None or not noise.is_grey,
            has_one_wording=self.has_one_wording, names=self.names, asks_of_few=is_close or is_blank,
        )  # fmt: skip
        return SceneSample(index, seed, layout, self.image_size, entities, truth, questions, noise, closeup)

    def __iter__(self) -> Iterator[SceneSample]:
        """Scenes `start`, `start + 1`, ... before `stop`."""
        for index in itertools.count(self.start):
            if self.stop is not None and index >= self.stop:
                return
            yield self[index]


def main() -> None:
    """Command line: print a scene as text."""
    parser = argparse.ArgumentParser(
        prog="python -m moai.scenes.scenes", description="Synthetic scenes whose truth is known."
    )
    parser.add_argument(
        "--show", type=int, metavar="INDEX", required=True, help="print a scene's verbalization and questions"
    )
    parser.add_argument("--split", default="test", choices=SPLITS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sample = Scenes(split=arguments.split, seed=arguments.seed)[arguments.show]
    print(verbalize_scene(sample.truth))
    for question in sample.questions:
        print(f"{question.kind}: {question.question} -> {question.answer}")


if __name__ == "__main__":
    main()
