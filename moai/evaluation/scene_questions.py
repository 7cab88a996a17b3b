"""Questions about scenes, up to a number per kind, and what guessing without the image gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from random import Random

from PIL import Image

from moai.data.findings import FindingsReader
from moai.scenes.export import encode_png
from moai.scenes.scenes import SCENES_VERSION, Scenes, add_noise
from verbalizers import Scene, VerbalizationCache

from .question_settings import SceneTest
from .questions import TestImage, TestQuestion
from .scene_answers import is_right

__all__ = ["chance_of", "collect_scene_questions", "most_frequent_answers"]

#: Scenes in a row without a question of a wanted kind after which asking ends.
_PATIENCE = 3000
_NUM_COUNTED = 2000  # training scenes whose answers are counted
#: Bounds on the tokens of an answer: short ones, and descriptions.
_SHORT, _LONG = 24, 160


class _SceneStream:
    """Scenes made anew when their image or verbalization is needed: thousands of maps would fill the memory."""

    def __init__(self, scenes: Scenes, test: SceneTest, reader: FindingsReader | None) -> None:
        self.make, self.test, self.reader = lru_cache(maxsize=2)(scenes.__getitem__), test, reader

    def paint(self, index: int) -> Image.Image:
        """The image of a scene."""
        return Image.fromarray(self.make(index).image)

    def spoil_truth(self, index: int) -> Scene:
        """What poor verbalizers might have predicted."""
        return add_noise(self.make(index).truth, Random(f"{self.test.seed} {index}"), self.test.noise)

    def read_cache(self, index: int) -> Scene:
        """What verbalizers predicted before."""
        image = self.make(index).image
        return self.reader.read(encode_png(image), image).scene


def collect_scene_questions(test: SceneTest) -> Iterator[TestQuestion]:
    """Questions of a split in order, up to a number per kind; fewer where a cache ends before.

    Raises:
        ValueError: Scenes of so few objects have no question of a kind, or the cache holds not even the first scene.
    """
    missing = dict.fromkeys(test.kinds, test.per_kind)
    scenes = Scenes(
        test.split, test.seed, test.image_size, test.num_objects, max(7, len(test.kinds)), test.kinds,
        sign_probability=test.sign_probability, names=test.names, has_one_wording=test.has_one_wording,
    )  # fmt: skip
    reader = None if test.source != "cache" else FindingsReader(VerbalizationCache(test.cache, test.fingerprint))
    stream, in_vain = _SceneStream(scenes, test, reader), 0
    read_scene = {"truth": stream.spoil_truth, "cache": stream.read_cache}.get(test.source)
    for sample in scenes:
        if not any(missing.values()):
            return
        wanted = [asked for asked in sample.questions if missing[asked.kind] > 0]
        if not wanted:
            in_vain += 1
            if in_vain == _PATIENCE:
                absent = [kind for kind, number in missing.items() if number]
                raise ValueError(
                    f"expected questions of the kinds {absent} about scenes of {test.num_objects} objects, got none in "
                    f"{_PATIENCE} scenes. Raise `num_objects` or leave those kinds out."
                )
            continue
        in_vain = 0
        if reader is not None and not reader.knows(encode_png(sample.image)):
            if sample.index:
                return
            raise ValueError(
                f"expected verbalizations of {test.split} scenes at {test.image_size} pixels in {test.cache}, got none "
                f"of the first scene. Write and verbalize them: python -m moai.scenes.export --split {test.split}"
            )
        key = f"{test.split}/{test.seed}/{sample.index}"
        known = None if read_scene is None else partial(read_scene, sample.index)
        image = TestImage(key, partial(stream.paint, sample.index), known)
        for number, asked in enumerate(wanted):
            if missing[asked.kind] > 0:
                missing[asked.kind] -= 1
                bound = _LONG if asked.kind == "description" else _SHORT
                yield TestQuestion(
                    f"{sample.index}-{number}", asked.kind, asked.question, (asked.answer,), image, asked.earlier,
                    wording="trained" if asked.is_trained_wording else "never trained", options=asked.options,
                    max_new_tokens=test.max_new_tokens or bound, identity=f"{key} v{SCENES_VERSION}",
                )  # fmt: skip


def most_frequent_answers(test: SceneTest, num_scenes: int = _NUM_COUNTED) -> dict[str, str]:
    """By kind, the commonest answer to the training split's questions.

    Args:
        test: Whose kinds and names.
        num_scenes: How many scenes are asked about.
    """
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in test.kinds}
    for sample in Scenes("train", image_size=96, kinds=test.kinds, length=num_scenes, names=test.names):
        for asked in sample.questions:
            counts[asked.kind][asked.answer] += 1
    return {kind: answers.most_common(1)[0][0] for kind, answers in counts.items() if answers}


def chance_of(questions: Sequence[TestQuestion]) -> dict[str, float]:
    """By kind, how often a guess among what the scene offers is right; kinds that offer nothing are left out."""
    shares: dict[str, list[float]] = {}
    for item in questions:
        if item.options and item.kind != "description":
            hits = sum(is_right(item.answers[0], option) for option in item.options)
            shares.setdefault(item.kind, []).append(hits / len(item.options))
    return {kind: sum(found) / len(found) for kind, found in shares.items()}
