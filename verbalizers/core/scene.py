"""From images to scenes: verbalizers run side by side, then those that use what these found.

No scene is lost because one verbalizer fails.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from verbalizers.core.segmentation_map import render_segmentation_map
from verbalizers.core.sentences import verbalize_finding, verbalize_scene
from verbalizers.core.structures import SCENE_FIELDS, STRUCTURES, Scene
from verbalizers.core.verbalizer import Verbalizer, order_by_use

__all__ = [
    "SCENE_FIELDS",
    "join_scenes",
    "keep_kinds",
    "parse_scene",
    "render_segmentation_map",
    "verbalize_finding",
    "verbalize_scene",
]

logger = logging.getLogger(__name__)


# Verbalizers abandoned after a time-out whose thread still runs: asking them again would only pile up
# threads.
_stuck: list[tuple[Verbalizer, threading.Thread]] = []
_reported_failures: set[str] = set()


def parse_scene(
    images: Sequence[Image.Image | np.ndarray],
    verbalizers: Iterable[Verbalizer],
    timeout_s: float | None = None,
    known: Sequence[Scene | None] | None = None,
) -> list[Scene]:
    """Run every verbalizer on a batch of images, side by side in threads.

    Those that use other kinds' findings (`Verbalizer.uses`) run afterwards and are given what is known by then.

    A verbalizer that raises leaves its field empty and is named in `Scene.failures`; if it raised on the
    batch it is asked again image by image, so that one bad image does not lose the others. One that exceeds
    `timeout_s` is abandoned: its thread is a daemon and does not keep the process alive.

    Args:
        images: PIL images or uint8 `(H, W, 3)` RGB arrays; sizes may differ.
        verbalizers: at most one per kind.
        timeout_s: seconds each verbalizer has for the batch; None = no limit.
        known: what was found in each image before (None = nothing): read by those that use it, and part of the answer.

    Returns:
        One scene per image, in order.

    Raises:
        ValueError: an image is no RGB image or its known scene of another size, two verbalizers share a kind or wait
            for each other, or the time-out is not positive.
    """
    arrays = [as_rgb_array(image) for image in images]
    verbalizers = list(verbalizers)
    kinds = [verbalizer.kind for verbalizer in verbalizers]
    if len(set(kinds)) != len(kinds):
        raise ValueError(f"expected at most one verbalizer per kind, got {kinds}. Drop one or register a new kind.")
    if timeout_s is not None and timeout_s <= 0:
        raise ValueError(f"`timeout_s` must be positive or None, got {timeout_s}.")
    scenes = _start_scenes(arrays, known)
    for group in order_by_use(verbalizers):
        for found in _run_in_threads(group, arrays, scenes, timeout_s) if arrays else ():
            scenes = [join_scenes(scene, new) for scene, new in zip(scenes, found, strict=True)]
    return scenes


def _start_scenes(arrays: list[np.ndarray], known: Sequence[Scene | None] | None) -> list[Scene]:
    scenes = [None] * len(arrays) if known is None else list(known)
    if len(scenes) != len(arrays):
        raise ValueError(f"`known` must hold one scene per image ({len(arrays)}), got {len(scenes)}. None = nothing.")
    for index, array in enumerate(arrays):
        scenes[index] = scenes[index] or Scene(image_size_hw=array.shape[:2])
        if scenes[index].image_size_hw != array.shape[:2]:
            raise ValueError(
                f"expected a scene of {array.shape[:2]} pixels (height, width) for image {index}, got one of "
                f"{scenes[index].image_size_hw}. A scene belongs to the image that it was found in."
            )
    return scenes


def join_scenes(scene: Scene, new: Scene) -> Scene:
    """A scene with the findings and failures of another one of the same image added; the new ones win."""
    fields = {name: getattr(new, name) for name in SCENE_FIELDS.values() if getattr(new, name) is not None}
    findings, failures = {**scene.findings, **new.findings}, {**scene.failures, **new.failures}
    return replace(scene, **fields, findings=findings, failures=failures)


def keep_kinds(scene: Scene, kinds: Iterable[str] | None) -> Scene:
    """A scene with the findings of these kinds alone (None = all); failures stay, the kept ones may rest on them."""
    if kinds is None:
        return scene
    kept = set(kinds)
    dropped = {name: None for kind, name in SCENE_FIELDS.items() if kind not in kept}
    return replace(scene, **dropped, findings={kind: f for kind, f in scene.findings.items() if kind in kept})


def as_rgb_array(image: Image.Image | np.ndarray) -> np.ndarray:
    """uint8 `(H, W, 3)` RGB from a PIL image of any mode or an array; alpha is dropped, grey is repeated.

    Raises:
        ValueError: neither, or an array of another dtype or shape.
    """
    if isinstance(image, Image.Image):
        # A copy: Pillow's own buffer is read-only, which torch warns about.
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        if 0 not in image.shape:
            return image
    got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise ValueError(f"expected a PIL image or a uint8 (H, W, 3) RGB array, got {got}. Use PIL.Image.open(path).")


def _run_in_threads(
    verbalizers: list[Verbalizer], arrays: list[np.ndarray], scenes: list[Scene], timeout_s: float | None
) -> list[list[Scene]]:
    """Per verbalizer one scene per image, which holds its finding or why there is none."""
    finished: dict[str, list[Scene]] = {}
    _stuck[:] = [(v, thread) for v, thread in _stuck if thread.is_alive()]

    def work(verbalizer: Verbalizer) -> None:
        finished[verbalizer.kind] = _predict_safely(verbalizer, arrays, scenes)

    threads = []
    for verbalizer in verbalizers:
        if any(verbalizer is other for other, _ in _stuck):
            message = "still busy with an earlier batch that exceeded its time-out"
            finished[verbalizer.kind] = _fail(verbalizer, arrays, message)
            continue
        name = f"verbalizer-{verbalizer.kind}"
        thread = threading.Thread(target=work, args=(verbalizer,), name=name, daemon=True)
        thread.start()
        threads.append((verbalizer, thread))
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    late = {}
    for verbalizer, thread in threads:
        thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            _stuck.append((verbalizer, thread))
            late[verbalizer.kind] = _fail(verbalizer, arrays, f"no answer within {timeout_s:g} s")
    # A late thread may still write into `finished`: what was reported as failed stays failed.
    return list({**finished, **late}.values())


def _predict_safely(verbalizer: Verbalizer, arrays: list[np.ndarray], scenes: list[Scene]) -> list[Scene]:
    """The verbalizer's scenes; where it raises, it is asked image by image."""
    try:
        return _predict_checked(verbalizer, arrays, scenes)
    except Exception as error:  # noqa: BLE001 - foreign code may raise anything; the answer must come
        if len(arrays) == 1:
            return _fail(verbalizer, arrays, f"{type(error).__name__}: {error}")
    singles = zip(arrays, scenes, strict=True)
    return [new for array, scene in singles for new in _predict_safely(verbalizer, [array], [scene])]


def _predict_checked(verbalizer: Verbalizer, arrays: list[np.ndarray], scenes: list[Scene]) -> list[Scene]:
    findings, kind = verbalizer.predict_with(arrays, scenes), verbalizer.kind
    if not isinstance(findings, list) or len(findings) != len(arrays):
        got = f"{len(findings)} findings" if isinstance(findings, list) else type(findings).__name__
        raise ValueError(f"predict must return a list of {len(arrays)} findings, one per image, got {got}.")
    if kind not in SCENE_FIELDS:
        return [Scene(array.shape[:2], findings={kind: new}) for array, new in zip(arrays, findings, strict=True)]
    field = SCENE_FIELDS[kind]
    for finding in findings:
        if finding is not None and not isinstance(finding, STRUCTURES[field]):
            got = type(finding).__name__
            raise ValueError(f"kind {kind!r} must answer with {STRUCTURES[field].__name__}, got {got}.")
    return [Scene(array.shape[:2], **{field: new}) for array, new in zip(arrays, findings, strict=True)]


def _fail(verbalizer: Verbalizer, arrays: list[np.ndarray], message: str) -> list[Scene]:
    """Scenes that hold a failure; it is a warning the first time: a data set would repeat it a million times."""
    key = f"{verbalizer.kind}/{verbalizer.backend}: {message[:200]}"
    level = logging.DEBUG if key in _reported_failures else logging.WARNING
    _reported_failures.add(key)
    logger.log(level, "verbalizer %s failed on %d image(s): %s", verbalizer.kind, len(arrays), message)
    return [Scene(array.shape[:2], failures={verbalizer.kind: message}) for array in arrays]
