"""Samples of synthetic scenes: rendered on demand, verbalized from their truth or by real verbalizers.

Questions about them, or each with its caption as a document.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from moai.data.collator import SampleCollator
from moai.data.findings import FindingsReader
from moai.data.image_samples import caption_scene
from moai.data.sample_identity import hash_value
from moai.data.samples import BadSampleError, Sample
from moai.data.training_report import DataReport
from moai.data.training_settings import DataSettings, SourceSettings
from moai.scenes.questions import PIXEL_KINDS
from moai.scenes.renaming import rename_scene
from moai.scenes.scenes import SceneQuestion, SceneSample, add_noise
from moai.scenes.vocabulary import PAINTS
from verbalizers import Scene

__all__ = ["SceneSamples"]

_MEASURED_SCENES = 8
#: Where in the stream the images of other scenes come from: scenes that no source reaches.
_UNRELATED = 1 << 40
#: Distance to the scenes that stand in place of those without questions, and how many are tried.
_SPARE, _TURNS = 1 << 41, 200
#: Share of unrelated images in which there is nothing at all.
_NAMELESS_SHARE = 0.4
#: Share of the renamed scenes that keep their image: what has a new name has its colour where its box is.
_OWN_IMAGE_SHARE = 0.3


def _needs_pixels(asked: SceneQuestion) -> bool:
    """Whether it, or a turn before it, asks what only the image tells."""
    return asked.kind in PIXEL_KINDS or any(answer in PAINTS for _, answer in asked.earlier)


@dataclass(frozen=True)
class _Told:
    """A scene, what is found and asked about it, and whose image is shown."""

    scene: SceneSample
    found: Scene
    questions: tuple[SceneQuestion, ...]
    shown: SceneSample


class SceneSamples:
    """Questions about scenes; sample `s * num_questions + q` is question q of scene s. Of captions a scene has one.

    Args:
        source: Which scenes.
        settings: What holds for all sources.
        collator: How the model reads samples: lengths and limits count.
        findings: Whose words are used, and who looks; None = no verbalizations.
        report: Receives counts.

    Attributes:
        name: "scenes".
        lengths: Tokens per sample: the longest of a few. Questions about scenes are alike, and to know each one's would
            mean to make every scene beforehand.
        findings: As given.

    Raises:
        ValueError: A setting is wrong, or the samples are longer than allowed.
    """

    def __init__(
        self,
        source: SourceSettings,
        settings: DataSettings,
        collator: SampleCollator,
        findings: FindingsReader | None,
        report: DataReport,
    ) -> None:
        self.findings, self._collator, self.name = findings, collator, "scenes"
        scenes = source.scenes
        if scenes is None:
            raise ValueError("expected a source with `scenes`, got a path.")
        self._made: tuple[int, _Told] | None = None
        self._source, self._limit = scenes, settings.max_length
        self._has_captions = scenes.form == "captions"
        if self._has_captions and not collator.reads_documents:
            raise ValueError("expected `form: questions` for scenes, got captions: the model reads no documents.")
        self._per_scene = 1 if self._has_captions else scenes.num_questions
        self._is_live = settings.choose_verbalizations(source) == "live"
        self._scenes = scenes.stream(scenes.num_questions)
        count = min(scenes.length, source.limit or scenes.length)
        if not self._has_something(self._tell(0)):
            raise ValueError(
                f"expected questions of the kinds {scenes.kinds}, got none in {_TURNS} scenes. "
                "Name more kinds, or allow more objects (`num_objects`)."
            )
        asking = [k for k in range(min(count, _MEASURED_SCENES)) if self._has_something(self._tell(k))]
        samples = [self._compose(index, question) for index in asking for question in range(self._per_scene)]
        longest = max(map(collator.measure, samples))
        self._digest = hash_value(samples)
        if self._limit is not None and longest > self._limit:
            raise ValueError(
                f"expected at most {self._limit} tokens (`max_length`, or what the model reads), scenes have {longest}."
            )
        self.lengths = [longest] * (count * self._per_scene)
        self.image_indices = np.repeat(np.arange(count), self._per_scene)
        self._seen: tuple[int, tuple[Any, ...]] | None = None
        report.num_rows += count
        report.num_images += count

    def identity(self) -> dict[str, Any]:
        """Hash of the first scenes' questions and answers: what they are is said by the settings and the code."""
        return {"first_scenes": self._digest.hex()}

    def place(self, index: int) -> str:
        """Stream, scene and question of a sample."""
        scene, question = divmod(index, self._per_scene)
        return f"scenes {self._source.split}/{self._source.seed}:{self._source.start + scene} question {question + 1}"

    def load(self, index: int) -> Sample:
        """Make one sample: render its image, verbalize it.

        Raises:
            BadSampleError: Its prompt cannot be written, or is too long with its verbalization.
        """
        scene_index, question = divmod(index, self._per_scene)
        messages = self._compose(scene_index, question)
        if self._seen is None or self._seen[0] != scene_index:
            self._seen = scene_index, self._look(scene_index)
        sample = Sample(self.place(index), messages, *self._seen[1], targets=(len(messages) - 1,))
        if (problem := self._collator.find_problem(sample, self._limit)) is not None:
            raise BadSampleError(problem)
        return sample

    def _has_something(self, told: _Told) -> bool:
        return bool(caption_scene(told.scene.truth) if self._has_captions else told.questions)

    def _tell(self, scene_index: int) -> _Told:
        """The scene of a sample; the last one is kept, for samples of one scene follow each other.

        In place of a scene about which there is nothing to ask or to say stands one that no source reaches.
        """
        if self._made is None or self._made[0] != scene_index:
            first = self._source.start + scene_index
            tried = (self._make(first + turn * _SPARE) for turn in range(_TURNS))
            self._made = scene_index, next(filter(self._has_something, tried), None) or self._make(first)
        return self._made[1]

    def _make(self, index: int) -> _Told:
        scene = self._scenes[index]
        found, questions, shown = scene.truth, scene.questions, scene
        if self.findings is not None and not self._is_live:
            found = add_noise(scene.truth, Random(scene.seed), self._source.noise)
        rng = Random(f"unrelated {scene.seed}")
        if rng.random() < self._source.unrelated_share and scene.layout.stuff:
            keeps_image = rng.random() < _OWN_IMAGE_SHARE
            asked = [question for question in questions if keeps_image or not _needs_pixels(question)]
            renamed, asked_about = rename_scene(found, asked, rng, self._source.split)
            if asked_about:  # a slip may hide the name in all of them
                found, questions = renamed, asked_about
                if not keeps_image:
                    shown = self._scenes[_UNRELATED + index]
                    if rng.random() < _NAMELESS_SHARE:
                        shown = replace(shown, layout=shown.layout.emptied(), closeup=None)
        return _Told(scene, found, questions, shown)

    def _look(self, scene_index: int) -> tuple[tuple[Image.Image, ...], tuple[Scene | None, ...] | None]:
        """Image of a scene, and what was found in it."""
        told = self._tell(scene_index)
        image = Image.fromarray(told.shown.image)
        if self.findings is None:
            return (image,), None
        if self._is_live:
            return (image,), (self.findings.read(None, image).scene,)
        return (image,), (told.found,)

    def _compose(self, scene_index: int, question: int) -> tuple[dict[str, Any], ...]:
        """Messages, the answer last; a scene with fewer questions repeats them. Or a document."""
        if self._has_captions:
            return self._compose_document(scene_index)
        questions = self._tell(scene_index).questions
        if not questions:
            raise BadSampleError(f"scene {self._source.start + scene_index} has no question of these kinds.")
        asked = questions[question % len(questions)]
        turns = [turn for pair in asked.earlier for turn in zip(("user", "assistant"), pair, strict=True)]
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}]}
            for role, text in (*turns, ("user", asked.question), ("assistant", asked.answer))
        ]
        messages[0]["content"].insert(0, {"type": "image"})
        return tuple(messages)

    def _compose_document(self, scene_index: int) -> tuple[dict[str, Any], ...]:
        scene = self._tell(scene_index).scene
        if not (caption := caption_scene(scene.truth)):
            raise BadSampleError(f"scene {self._source.start + scene_index} has nothing to name.")
        parts = [{"type": "image"}, {"type": "text", "text": caption}]
        if Random(f"document {scene.seed}").random() < 0.5:
            parts.reverse()
        return ({"role": "assistant", "content": parts},)
