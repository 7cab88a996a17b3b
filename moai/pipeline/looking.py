"""Looking at images: the only place in moai where verbalizers run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image

from verbalizers import SCENE_FIELDS, Scene, Verbalizer, parse_scene

__all__ = ["complete_scenes", "find_missing_kinds"]


def complete_scenes(
    items: Sequence[tuple[Image.Image | np.ndarray, Scene | None]],
    verbalizers: Sequence[Verbalizer],
    timeout_s: float | None,
) -> list[Scene]:
    """Look at images; where a scene is at hand, only for what it lacks.

    A kind whose finding stands in the scene, be it empty, or which has failed on it, is not looked for again.

    Args:
        items: Images, each with the findings at hand or None.
        verbalizers: Who can look.
        timeout_s: Seconds per image after which a verbalizer is given up; None = no limit.

    Returns:
        One scene per image, in order.
    """
    scenes = [scene for _, scene in items]
    blank = [index for index, scene in enumerate(scenes) if scene is None]
    if blank:
        limit = None if timeout_s is None else timeout_s * len(blank)
        found = parse_scene([items[index][0] for index in blank], verbalizers, limit)
        for index, scene in zip(blank, found, strict=True):
            scenes[index] = scene
    for index in set(range(len(items))) - set(blank):
        image, scene = items[index]
        known = {kind for kind, name in SCENE_FIELDS.items() if getattr(scene, name) is not None}
        wanted = [v for v in verbalizers if v.kind not in known | set(scene.findings) | set(scene.failures)]
        if wanted:
            scenes[index] = parse_scene([image], wanted, timeout_s, [scene])[0]
    return scenes


def find_missing_kinds(scene: Scene, kinds: Iterable[str], absent: Mapping[str, str]) -> dict[str, str]:
    """Which intelligences did not contribute to a scene, and why.

    Args:
        scene: What was found.
        kinds: What should have been looked for.
        absent: Kinds whose verbalizer could not be built, and why.

    Returns:
        Kind -> reason. A kind that looked and found nothing is not missing.
    """
    missing = {}
    for kind in kinds:
        finding = getattr(scene, SCENE_FIELDS[kind]) if kind in SCENE_FIELDS else scene.findings.get(kind)
        if finding is None and kind not in scene.failures:
            missing[kind] = absent.get(kind, "no verbalizer looked for it")
    return {**scene.failures, **missing}
