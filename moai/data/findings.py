"""Verbalizations of training images: read from a cache, made now, or left out.

    findings = FindingsReader.from_settings(DataSettings(sources="train.jsonl", cache="cache"))
    found = findings.read(image_bytes, image)  # found.text, found.scene

Training and evaluation read the same words through it. It travels to worker processes; verbalizers are built in the
process that needs them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from moai.data.training_settings import DataSettings
from verbalizers import SCENE_FIELDS, Scene, VerbalizationCache, WordSettings, parse_scene, verbalize_scene
from verbalizers.core.scene import keep_kinds
from verbalizers.store.recipe import is_made_by
from verbalizers.store.rows import hash_content

__all__ = ["Findings", "FindingsReader", "MissingFindingsError", "settings_of_cache"]

logger = logging.getLogger(__name__)


class MissingFindingsError(ValueError):
    """The cache does not hold an image."""


@dataclass(frozen=True)
class Findings:
    """Verbalization of one image: scene and text.

    Attributes:
        text: The verbalization.
        scene: What was found; None = nobody looked.
    """

    text: str = ""
    scene: Scene | None = None


def settings_of_cache(cache: VerbalizationCache) -> VerbalizerSettings:
    """Verbalizers and text settings of a cache, as a checkpoint's `verbalizers.json` names them."""
    manifest = cache.manifest
    entries = [{key: entry[key] for key in ("kind", "backend", "settings")} for entry in manifest["verbalizers"]]
    return VerbalizerSettings(
        tuple(entries),
        tuple(manifest.get("kept_kinds", [entry["kind"] for entry in entries])),
        WordSettings(**{"quote_text": False} | manifest["words"]),  # caches from before text was quoted do not say
        compat=manifest["compat"],
    )


class FindingsReader:
    """Reads or makes the findings of single images.

    Args:
        cache: Where to look first; None = nowhere.
        settings: Verbalizers and choice of words; None = the cache's, or the defaults.
        is_looking: Whether the verbalizers look at an image that the cache lacks (or at all, without a cache).
        kinds: Kinds that are said, in this order; None = all that were found.
        timeout_s: Seconds per image for each live verbalizer; None = no limit.

    Attributes:
        settings: The verbalizers and words in use; a model trained on these findings is to be saved with them.
    """

    def __init__(
        self,
        cache: VerbalizationCache | None = None,
        settings: VerbalizerSettings | None = None,
        is_looking: bool = False,
        kinds: tuple[str, ...] | None = None,
        timeout_s: float | None = 30.0,
    ) -> None:
        if cache is not None:
            # What is looked at now must be what was looked at then, or one data set would hold two languages.
            settings = settings_of_cache(cache)
        self.cache = cache
        self.settings = settings or VerbalizerSettings()
        self.is_looking, self.kinds, self.timeout_s = is_looking, kinds, timeout_s
        self._kept_kinds = None if cache is None else cache.manifest.get("kept_kinds")
        self._verbalizers: list[Any] = []
        self._process: int | None = None

    @classmethod
    def from_settings(
        cls, settings: DataSettings, verbalizer_settings: VerbalizerSettings | None = None
    ) -> FindingsReader:
        """The reader that data settings describe.

        Args:
            settings: Names the cache, if there is one, and what to do without an entry.
            verbalizer_settings: Who looks where there is no cache: those of the starting checkpoint.

        Raises:
            ValueError: The cache cannot be opened.
            ImportError: It needs pyarrow.
        """
        cache = None if settings.cache is None else VerbalizationCache(settings.cache, settings.fingerprint)
        is_looking = cache is None or settings.on_missing == "live"
        return cls(cache, verbalizer_settings, is_looking, settings.kinds, settings.timeout_s)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_verbalizers": [], "_process": None}

    def knows(self, content: bytes) -> bool:
        """Whether the cache holds an image, by its encoded bytes."""
        return self.cache is not None and hash_content(content) in self.cache

    def read(self, content: bytes | None, image: Image.Image | np.ndarray) -> Findings:
        """The findings of one image.

        Args:
            content: Its encoded bytes, the key of the cache; None = it was never a file.
            image: The decoded image, upright, for the verbalizers to look at where they must.

        Raises:
            MissingFindingsError: The cache does not hold it, and nobody may look now.
        """
        found = None if content is None or self.cache is None else self.cache.get(hash_content(content))
        if found is not None:
            return Findings(found.text if self.kinds is None else self.describe(found.scene), found.scene)
        if not self.is_looking:
            raise MissingFindingsError("the cache of verbalizations does not hold it")
        scene = keep_kinds(parse_scene([image], self._build(), self.timeout_s)[0], self._kept_kinds)
        return Findings(self.describe(scene), scene)

    def identity(self) -> dict[str, Any]:
        """Who verbalizes, with which settings; checkpoints count by their content, wherever they lie."""
        settings = self.settings
        found: dict[str, Any] = {"words": asdict(settings.words), "compat": settings.compat}
        if self.cache is not None:
            found["cache"] = self.cache.fingerprint
        if self.is_looking:
            verbalizers, absent = settings.build()
            found["live"] = {one.kind: f"{one.backend} {one.fingerprint()}" for one in verbalizers}
            found["live"] |= dict.fromkeys(absent, "absent")
        return found

    def describe(self, scene: Scene) -> str:
        """Verbalization of a scene; kinds without a verbalizer are left out."""
        kinds = self.kinds
        if kinds is not None:
            known = {*SCENE_FIELDS, *scene.findings, *scene.failures}
            kinds = tuple(kind for kind in kinds if kind in known)
        return verbalize_scene(scene, kinds, self.settings.compat, self.settings.words)

    def makes_maps(self) -> bool:
        """Whether segments are among what is found, so that there are maps to paint."""
        if self.cache is None and not self.is_looking:  # scenes' truth, which has all kinds
            return self.kinds is None or "segmentation" in self.kinds
        named = {entry["kind"] for entry in self.settings.verbalizers or ()}
        if self._kept_kinds is not None:
            named &= set(self._kept_kinds)
        return "segmentation" in named and (self.kinds is None or "segmentation" in self.kinds)

    def _build(self) -> list[Any]:
        """The verbalizers, built once per process: a fork must not inherit a running engine's threads."""
        if self._process != os.getpid():
            self._verbalizers, absent = self.settings.build()
            self._process = os.getpid()
            for kind, reason in absent.items():
                logger.warning("nobody looks for %s: %s", kind, reason)
            if not self._verbalizers:
                raise ValueError(
                    "verbalizations are to be made while training, but there is no verbalizer: "
                    f"{dict(absent) or 'none is named'}. Install one, name a cache, or set verbalizations to none."
                )
            self._check_fingerprints()
        return self._verbalizers

    def _check_fingerprints(self) -> None:
        """Check the verbalizers against those that filled the cache."""
        entries: list[Mapping[str, Any]] = [] if self.cache is None else self.cache.manifest["verbalizers"]
        verbalizers = {verbalizer.kind: verbalizer for verbalizer in self._verbalizers}
        for entry in entries:
            verbalizer = verbalizers.get(entry["kind"])  # one that is not installed has been named already
            if verbalizer is not None and not is_made_by(entry, verbalizer):
                raise ValueError(
                    f"the verbalizer {entry['kind']}/{entry['backend']} is not the one that filled the cache (another "
                    "checkpoint or version). Verbalize the missing images with `moai verbalize`, or the whole anew."
                )

    def settings_with_map(self, has_map: bool) -> VerbalizerSettings:
        """The `verbalizers.json` of a model trained on these findings."""
        settings = replace(self.settings, map="always" if has_map else "never")
        return settings if self.kinds is None else replace(settings, kinds=tuple(self.kinds))
