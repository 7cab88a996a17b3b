"""Settings of training data: conversation files, synthetic scenes, and the source of their verbalizations.

As YAML, every key but `sources` optional::

    sources:
      - path: data/train.jsonl          # LLaVA's JSON or JSONL, Parquet, or a `datasets` folder
        image_folder: data/images
      - scenes: {length: 20000, num_questions: 4, noise: 1.0}
    cache: data/verbalizations          # written by `moai verbalize data/train.jsonl --out data/verbalizations`
    on_missing: error
    max_bad_rows: 10
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from moai.scenes.scenes import QUESTION_KINDS, SPLITS

__all__ = ["CHECKS", "MAPS", "MISSING_ACTIONS", "VERBALIZATIONS", "DataSettings", "SceneSource", "SourceSettings"]

#: Where verbalizations come from.
VERBALIZATIONS = ("cache", "live", "truth", "none")
#: What happens to an image that the cache does not hold.
MISSING_ACTIONS = ("error", "skip", "live", "empty")
#: How closely images are looked at before training begins.
CHECKS = ("path", "content", "decode")
#: Whether the painted panoptic map is given.
MAPS = ("auto", "always", "never")

T = TypeVar("T")


def _require(value: object, choices: tuple[str, ...], name: str) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {choices}, got {value!r}.")


def _require_count(value: object, name: str, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"`{name}` must be an integer of at least {least}, got {value!r}.")


def _build(kind: type[T], values: Any, where: str) -> T:
    """A settings object from parsed YAML; unknown keys are named."""
    known = [item.name for item in fields(kind)]
    if not isinstance(values, Mapping):
        raise ValueError(f"`{where}` must be a mapping with keys among {known}, got {values!r}.")
    if unknown := sorted(set(values) - set(known), key=str):
        raise ValueError(f"`{where}` has the unknown keys {unknown}; it knows {known}. Correct the spelling.")
    return kind(**values)


@dataclass(frozen=True)
class SceneSource:
    """Synthetic scenes (`moai.scenes.scenes`) as training samples.

    Attributes:
        length: Number of scenes.
        split: "train", "validation" or "test".
        seed: Another seed is another stream.
        start: First scene.
        image_size: Height and width in pixels.
        num_objects: Fewest and most objects per scene.
        num_questions: Samples per scene; every one is a question of its own.
        kinds: Kinds of questions.
        sign_probability: How often a scene has a sign with words.
        unseen_word_share: Share of made-up words and numbers on signs; None = the test split's mixture, 28 %.
        noise: Strength of the errors that verbalizations made from the truth carry; 0 = the truth.
    """

    length: int = 1000
    split: str = "train"
    seed: int = 0
    start: int = 0
    image_size: int = 448
    num_objects: tuple[int, int] = (1, 6)
    num_questions: int = 4
    kinds: tuple[str, ...] = QUESTION_KINDS
    sign_probability: float = 0.6
    unseen_word_share: float | None = None
    noise: float = 1.0

    def __post_init__(self) -> None:
        _require(self.split, SPLITS, "split")
        for name in ("length", "num_questions", "image_size"):
            _require_count(getattr(self, name), name)
        for name in ("seed", "start"):
            _require_count(getattr(self, name), name, 0)
        for name in ("num_objects", "kinds"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.noise, bool) or not isinstance(self.noise, int | float) or self.noise < 0:
            raise ValueError(f"`noise` must be a number of at least 0, got {self.noise!r}.")


@dataclass(frozen=True)
class SourceSettings:
    """One source of samples: a file or folder of conversations, or scenes.

    Attributes:
        path: `.json` / `.jsonl` (LLaVA's `image` + `conversations`, or `images` + `messages`), `.parquet`, a folder
            of Parquet files, or a folder that `datasets`' save_to_disk wrote.
        scenes: Instead of `path`: synthetic scenes.
        image_folder: Where relative image paths begin; None = beside the file.
        split: Split of a `datasets` folder that has several.
        limit: Use only the first rows, this many; None = all.
        verbalizations: One of `VERBALIZATIONS` for this source; None = as `DataSettings` says.
    """

    path: str | None = None
    scenes: SceneSource | None = None
    image_folder: str | None = None
    split: str | None = None
    limit: int | None = None
    verbalizations: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.scenes, Mapping):
            object.__setattr__(self, "scenes", _build(SceneSource, self.scenes, "scenes"))
        if (self.path is None) == (self.scenes is None):
            raise ValueError("a source needs exactly one of `path` and `scenes`. Name a file, or describe scenes.")
        if self.path is not None:
            object.__setattr__(self, "path", str(self.path))
        if self.limit is not None:
            _require_count(self.limit, "limit")
        if self.verbalizations is not None:
            _require(self.verbalizations, VERBALIZATIONS, "verbalizations")
        if self.verbalizations == "truth" and self.scenes is None:
            raise ValueError("only scenes have a truth to verbalize; for a file choose cache, live or none.")
        if self.verbalizations == "cache" and self.scenes is not None:
            raise ValueError(
                "scenes are painted on the fly and stand in no cache; choose truth, live or none, or write them to "
                "files first (python -m moai.scenes.export) and verbalize those."
            )


@dataclass(frozen=True)
class DataSettings:
    """Settings of all training data.

    Attributes:
        sources: Where samples come from; their order is the order of the dataset.
        verbalizations: Where verbalizations come from: "cache" (`moai verbalize`), "live" (the verbalizers look at
            each image when it is read: slow), "truth" (scenes only), "none" (no auxiliary input at all). None =
            "cache" where `cache` is named, else "live"; for scenes "truth".
        cache: The folder that `moai verbalize DATASET --out` wrote.
        fingerprint: Which verbalizations inside it; None = the only ones there.
        on_missing: What to do with an image that the cache lacks: "error", "skip" its row, look at it "live", or
            train on it with "empty" findings.
        kinds: Kinds of findings that are said, in this order; None = all that were found.
        map: Whether the painted panoptic map is an input: "always", "never", or "auto" = where segmentation is among
            the verbalizers.
        timeout_s: Seconds per image for each live verbalizer; None = no limit.
        max_length: Longest sample in tokens, images and answer included; None = as the processor says.
        max_images: Most images in one sample.
        max_bad_rows: How many malformed rows, unreadable images and too long samples are skipped before it is an
            error.
        check_pictures: What is looked at before training: "path" (the file is there), "content" (its bytes are read:
            it is an image, and the cache holds it), or "decode" (every pixel).
        chat_template: Template (name) of prompts; None = the processor's default.
    """

    sources: tuple[SourceSettings, ...]
    verbalizations: str | None = None
    cache: str | None = None
    fingerprint: str | None = None
    on_missing: str = "error"
    kinds: tuple[str, ...] | None = None
    map: str = "auto"
    timeout_s: float | None = 30.0
    max_length: int | None = None
    max_images: int = 8
    max_bad_rows: int = 0
    check_pictures: str = "content"
    chat_template: str | None = None

    def __post_init__(self) -> None:
        given = self.sources
        given = [given] if isinstance(given, str | Mapping | SourceSettings) else list(given)
        object.__setattr__(self, "sources", tuple(_as_source(item, index) for index, item in enumerate(given)))
        if not self.sources:
            raise ValueError("expected at least one source of training samples, got none. Name a file under `sources`.")
        if self.verbalizations is not None:
            _require(self.verbalizations, VERBALIZATIONS, "verbalizations")
        _require(self.on_missing, MISSING_ACTIONS, "on_missing")
        _require(self.map, MAPS, "map")
        _require(self.check_pictures, CHECKS, "check_pictures")
        for name, least in (("max_images", 1), ("max_bad_rows", 0)):
            _require_count(getattr(self, name), name, least)
        if self.max_length is not None:
            _require_count(self.max_length, "max_length")
        if self.cache is not None:
            object.__setattr__(self, "cache", str(self.cache))
        if self.kinds is not None:
            object.__setattr__(self, "kinds", tuple(self.kinds))
        if self.cache is None and "cache" in {self.choose_verbalizations(source) for source in self.sources}:
            raise ValueError("verbalizations come from a cache, but `cache` names no folder. Name the --out folder.")

    def choose_verbalizations(self, source: SourceSettings) -> str:
        """The source of one data source's verbalizations; one of `VERBALIZATIONS`."""
        if source.verbalizations is not None:
            return source.verbalizations
        chosen = self.verbalizations or ("live" if self.cache is None else "cache")
        if source.scenes is not None:
            return "truth" if self.verbalizations is None or chosen == "cache" else chosen
        if chosen == "truth":
            raise ValueError("only scenes have a truth to verbalize; give the file its own `verbalizations`.")
        return chosen

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataSettings:
        """Build from parsed YAML.

        Raises:
            ValueError: A key is unknown or a value is wrong; the message names it.
        """
        if isinstance(values, Mapping) and "sources" not in values:
            raise ValueError("`data` needs `sources`: a list of {path: ...} or {scenes: {...}}.")
        return _build(cls, values, "data")


def _as_source(item: Any, index: int) -> SourceSettings:
    if isinstance(item, SourceSettings):
        return item
    if isinstance(item, str):
        return SourceSettings(path=item)
    return _build(SourceSettings, item, f"sources[{index}]")
