"""The work on a batch of images: decode, verbalize, pack. The same in a process, in Ray and in place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from verbalizers.core.scene import SCENE_FIELDS, keep_kinds, parse_scene, verbalize_finding, verbalize_scene
from verbalizers.core.structures import Scene
from verbalizers.core.verbalizer import Verbalizer
from verbalizers.store.recipe import Recipe
from verbalizers.store.rows import encode_found, hash_content
from verbalizers.store.sources import Source

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["LoadImage", "Outcome", "Work", "WorkSettings", "verbalize_works"]

LoadImage = Callable[[bytes], "Image.Image"]
#: Pixels that are decoded at once, whatever the number of images: 64 megapixels are 0.2 GB.
_MAX_BATCH_PIXELS = 64_000_000


@dataclass(frozen=True)
class Work:
    """One distinct image to verbalize.

    Attributes:
        content_hash: of its bytes.
        source: where it lies.
        data: its bytes; None = the worker reads them.
    """

    content_hash: str
    source: Source
    data: bytes | None


@dataclass(frozen=True)
class WorkSettings:
    """Settings that workers need.

    Attributes:
        recipe: verbalizers and words.
        load: encoded image -> upright RGB PIL image.
        timeout_s: seconds per image for each verbalizer; None = no limit.
    """

    recipe: Recipe
    load: LoadImage
    timeout_s: float | None = None


@dataclass(frozen=True)
class Outcome:
    """Result of one image.

    Attributes:
        content_hash: which.
        found: the line of `rows.encode_found`; None = it could not be read.
        error: why not.
        failures: kind -> why its verbalizer failed on it.
        seen_kinds: kinds whose verbalizers did not fail.
    """

    content_hash: str
    found: str | None
    error: str = ""
    failures: Mapping[str, str] = field(default_factory=dict)
    seen_kinds: tuple[str, ...] = ()


def verbalize_works(works: Sequence[Work], verbalizers: Sequence[Verbalizer], settings: WorkSettings) -> list[Outcome]:
    """Decode, verbalize and pack some images.

    Args:
        works: the images.
        verbalizers: built from the recipe.
        settings: the rest.

    Returns:
        One outcome per image, unreadable ones first.
    """
    outcomes: list[Outcome] = []
    for group in _decode(works, settings.load, outcomes):
        timeout_s = None if settings.timeout_s is None else settings.timeout_s * len(group)
        scenes = parse_scene([image for _, image in group], verbalizers, timeout_s)
        outcomes += [_pack(work, scene, settings.recipe) for (work, _), scene in zip(group, scenes, strict=True)]
    return outcomes


def _decode(
    works: Sequence[Work], load: LoadImage, outcomes: list[Outcome]
) -> Iterator[list[tuple[Work, Image.Image]]]:
    """Groups of decoded images; those that cannot be decoded become outcomes."""
    group: list[tuple[Work, Image.Image]] = []
    num_pixels = 0
    for work in works:
        try:
            image = load(_read(work))
        except Exception as error:  # noqa: BLE001 - one bad image must not end a run over a million
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            outcomes.append(Outcome(work.content_hash, None, reason))
            continue
        if group and num_pixels + image.width * image.height > _MAX_BATCH_PIXELS:
            yield group
            group, num_pixels = [], 0
        group.append((work, image))
        num_pixels += image.width * image.height
    if group:
        yield group


def _read(work: Work) -> bytes:
    data = work.source.read() if work.data is None else work.data
    if work.data is None and hash_content(data) != work.content_hash:
        raise ValueError("the image changed while the data set was being read. Run again.")
    return data


def _pack(work: Work, scene: Scene, recipe: Recipe) -> Outcome:
    scene = _drop_unserializable_findings(keep_kinds(scene, recipe.kept_kinds), recipe)
    text = verbalize_scene(scene, compat=recipe.compat, settings=recipe.words)
    seen = tuple(kind for kind in recipe.kinds if kind not in scene.failures)
    found = encode_found(work.content_hash, scene, text)
    return Outcome(work.content_hash, found, failures=scene.failures, seen_kinds=seen)


def _drop_unserializable_findings(scene: Scene, recipe: Recipe) -> Scene:
    """The scene with findings of further kinds that have no text or fit no JSON turned into failures."""
    failures = {}
    for kind, finding in scene.findings.items():
        try:
            verbalize_finding(finding, recipe.words, recipe.compat, kind, scene)
            json.dumps(Scene(scene.image_size_hw, findings={kind: finding}).to_dict(), allow_nan=False)
        except Exception as error:  # noqa: BLE001 - a plug-in's words may raise anything; the others must be kept
            failures[kind] = f"{type(error).__name__}: {error}"
    if not failures:
        return scene
    findings = {kind: finding for kind, finding in scene.findings.items() if kind not in failures}
    assert not set(failures) & set(SCENE_FIELDS), "the four kinds are checked by parse_scene"
    return replace(scene, findings=findings, failures={**scene.failures, **failures})
