"""Demonstrations of a test's questions: taken from a file, or from training scenes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from random import Random
from typing import Any

from moai.models.shots import Demonstrations, Shot, read_shots
from moai.scenes.export import encode_png
from moai.scenes.scenes import Scenes, add_noise
from verbalizers import Scene
from verbalizers.core.scene import keep_kinds

from .question_settings import SceneTest, TestSettings

__all__ = ["build_demonstrations", "describe_demonstrations"]

#: Training scenes to choose from; a question about each.
_NUM_SCENES = 128


def build_demonstrations(test: TestSettings) -> Demonstrations | None:
    """Where a test's questions get their demonstrations from; None = they get none.

    Raises:
        ValueError: There are no such demonstrations, or too few.
    """
    if test.shots is None:
        return None
    pool = _paint_scenes(test) if test.shots_from is None else read_shots(test.shots_from, is_loading=False)
    pool = [(*shot[:3], _seen(test, next(iter(shot[3:]), None))) for shot in pool]
    return Demonstrations(pool, test.shots, test.shots_retrieved, test.shots_seed)


def _seen(test: TestSettings, scene: Any) -> Any:
    """What a demonstration brings along, of the kinds that the test's questions have; "" = nothing is said."""
    if test.source == "none":
        return ""
    if scene is None or isinstance(scene, str):
        return scene
    return keep_kinds(scene if isinstance(scene, Scene) else Scene.from_dict(scene), test.verbalizers)


def describe_demonstrations(test: TestSettings) -> dict[str, Any]:
    """What decides them beside the test's settings: the file's content, and its images'."""
    if test.shots is None or test.shots_from is None:
        return {}
    digest = hashlib.sha256(Path(test.shots_from).read_bytes())
    for image, *_ in read_shots(test.shots_from, is_loading=False):
        digest.update(b"" if image is None else hashlib.sha256(Path(image).read_bytes()).digest())
    return {"demonstrations": digest.hexdigest()[:16]}


def _paint_scenes(test: TestSettings) -> list[Shot]:
    """Questions about training scenes, of the test's kinds, one per scene."""
    assert isinstance(test, SceneTest)  # a file's test names a file
    scenes = Scenes("train", test.seed, test.image_size, test.num_objects, max(7, len(test.kinds)), test.kinds)
    rng, pool = Random(test.shots_seed), []
    for sample in scenes:
        if sample.questions:
            asked = rng.choice(sample.questions)
            scene = add_noise(sample.truth, Random(sample.seed), test.noise) if test.source == "truth" else None
            pool.append((encode_png(sample.image), asked.question, asked.answer, scene))
        if len(pool) == _NUM_SCENES:
            return pool
    return pool
