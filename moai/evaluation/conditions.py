"""Conditions: a question with all its inputs, with some of them removed, or put to another model.

- ``model``: image and verbalization.
- ``without-KIND``: one verbalizer is silent. ``other-scene``: the verbalization is another image's. ``black-image``:
  the verbalization is all there is. ``image-only``: no verbalization.
- ``words-in-prompt``: the plain decoder, without an image, reads the words in its prompt. ``commonest``: the commonest
  answer of the kind, nobody looks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from moai.models.answering import Answering
from moai.pipeline.pipeline import Pipeline
from verbalizers import Scene
from verbalizers.core.scene import keep_kinds

from .loading import Test
from .question_settings import SceneTest
from .questions import TestQuestion
from .scene_questions import most_frequent_answers

__all__ = [
    "BASELINES",
    "MODEL",
    "WORDS_IN_PROMPT",
    "Condition",
    "build_conditions",
    "count_commonest",
    "list_conditions",
]

MODEL, OTHER_SCENE, BLACK_IMAGE, IMAGE_ONLY = "model", "other-scene", "black-image", "image-only"
WORDS_IN_PROMPT, COMMONEST = "words-in-prompt", "commonest"
BASELINES = (WORDS_IN_PROMPT, IMAGE_ONLY, COMMONEST)


@dataclass(frozen=True)
class Condition:
    """One way to be asked.

    Attributes:
        name: See the module's text.
        pipeline: Who answers; None = ``fixed`` says what.
        change_scene: Of the image's scene and another image's; what is read.
        change_image: Of the image; what is seen.
        fixed: By kind, the answer to everything.
        is_reporting: Whether the model tells how it answered.
        choose_options: Of questions, the model's own options beside those of all conditions.
    """

    name: str
    pipeline: Pipeline | None
    change_scene: Callable[[Scene, Scene], Scene] = lambda scene, other: scene
    change_image: Callable[[Image.Image], Image.Image] = lambda image: image
    fixed: dict[str, str] | None = None
    is_reporting: bool = False
    choose_options: Callable[[Sequence[TestQuestion]], dict[str, Any]] = lambda questions: {}


def list_conditions(kinds: Sequence[str], is_masking: bool, baselines: Sequence[str], num_images: int) -> list[str]:
    """Names of the conditions of a run, the model itself first.

    Args:
        kinds: Kinds of findings that the model reads.
        is_masking: Whether each is silent once.
        baselines: Some of :data:`BASELINES`.
        num_images: Of the test; the only one has no other image's scene.
    """
    others = [OTHER_SCENE] * (num_images > 1)
    masks = [*(f"without-{kind}" for kind in kinds), *others, BLACK_IMAGE, IMAGE_ONLY] if is_masking else []
    return list(dict.fromkeys([MODEL, *masks, *baselines]))


def build_conditions(
    names: Sequence[str], pipeline: Pipeline, test: Test, reader: Answering | None = None
) -> list[Condition]:
    """Conditions by their names.

    Args:
        names: From :func:`list_conditions`.
        pipeline: Of the model.
        test: What is asked.
        reader: Who reads words in the prompt; None = the model's own decoder.

    Raises:
        ValueError: The model has no decoder that reads words alone.
    """
    return [_build(name, pipeline, test, reader) for name in names]


def _build(name: str, pipeline: Pipeline, test: Test, reader: Answering | None) -> Condition:
    if name == MODEL:
        return Condition(name, pipeline, is_reporting=True)
    if name == IMAGE_ONLY:
        return Condition(name, pipeline, lambda scene, other: Scene(scene.image_size_hw))
    if name == OTHER_SCENE:
        return Condition(name, pipeline, lambda scene, other: resize_scene(other, scene.image_size_hw))
    if name == BLACK_IMAGE:
        return Condition(name, pipeline, change_image=lambda image: Image.new("RGB", image.size))
    if name == WORDS_IN_PROMPT:
        return Condition(name, pipeline.with_answering(reader or pipeline.answering.words_in_prompt()))
    if name == COMMONEST:
        return Condition(name, None, fixed=count_commonest(test))
    kind = name.removeprefix("without-")

    def silence(scene: Scene, other: Scene) -> Scene:
        return keep_kinds(scene, [each for each in (*pipeline.settings.kinds, *scene.findings) if each != kind])

    return Condition(name, pipeline, silence)


def count_commonest(test: Test) -> dict[str, str]:
    """By kind the commonest answer: in training scenes, or, for files, in the test itself, which is generous."""
    if isinstance(test.settings, SceneTest):
        return most_frequent_answers(test.settings)
    counts: dict[str, Counter[str]] = {}
    for question in test.questions:
        counts.setdefault(question.kind, Counter()).update([Counter(question.answers).most_common(1)[0][0]])
    return {kind: answers.most_common(1)[0][0] for kind, answers in counts.items()}


def resize_scene(scene: Scene, image_size_hw: tuple[int, int]) -> Scene:
    """Findings about an image of another size, stretched: what is said of them stays the same.

    Args:
        scene: Of an image.
        image_size_hw: Height and width of another.
    """
    if tuple(scene.image_size_hw) == tuple(image_size_hw):
        return scene
    (height, width), (old_height, old_width) = image_size_hw, scene.image_size_hw
    factors = np.array([width / old_width, height / old_height], np.float32)
    segments, detections, relations, lines = scene.segments, scene.detections, scene.relations, scene.text_lines
    if segments is not None:
        rows, columns = np.arange(height) * old_height // height, np.arange(width) * old_width // width
        segments = replace(segments, panoptic_map=segments.panoptic_map[rows[:, None], columns])
    if detections is not None:
        boxes = detections.boxes_xyxy * np.tile(factors, 2)
        detections = replace(detections, boxes_xyxy=boxes, image_size_hw=(height, width))
    if relations is not None and relations.object_boxes_xyxy is not None:
        relations = replace(relations, object_boxes_xyxy=relations.object_boxes_xyxy * np.tile(factors, 2))
    if lines is not None:
        lines = replace(lines, quads=lines.quads * factors)
    return replace(
        scene,
        image_size_hw=(height, width), segments=segments, detections=detections, relations=relations, text_lines=lines,
    )  # fmt: skip
