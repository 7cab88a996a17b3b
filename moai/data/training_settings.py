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
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictInt

from moai.scenes.scenes import QUESTION_KINDS, Scenes
from moai.settings import Count, Location, Number, Positive, Share, load_settings, settings

__all__ = ["DataSettings", "SceneSource", "SourceSettings"]

_Verbalizations = Literal["cache", "live", "truth", "none"]
_MissingAction = Literal["error", "skip", "live", "empty"]
_Check = Literal["path", "header", "decode"]
_Map = Literal["auto", "always", "never"]


@settings
class SceneSource:
    """Synthetic scenes (`moai.scenes.scenes`) as training samples.

    Attributes:
        length: Number of scenes.
        split: "train", "validation" or "test".
        seed: Another seed is another stream.
        start: First scene.
        image_size: Height and width in pixels.
        num_objects: Fewest and most objects per scene.
        form: ``questions``; or ``captions``: a document per scene, its image before or after what stands in it, for
            models that read documents. Tasks on captioned images have captions in any case.
        num_questions: Samples per scene; every one is a question of its own.
        kinds: Kinds of questions.
        sign_probability: How often a scene has a sign with words.
        made_up_share: Share of made-up words and numbers on signs.
        forged_share: Share of the scenes with signs of which one poses as a prediction.
        image_noise: Share of images that are grey, bright or dark, or in a grey frame.
        noise: Strength of the errors that verbalizations made from the truth carry; 0 = the truth.
        names: The only things there are; none = all that Scenes know.
        has_one_wording: Each form of a question is asked in the same words.
        closeup_share: Share of scenes that have no signs and of which the image shows a part, with one thing large in
            it, where one was found.
        blank_share: Share of scenes in which there is nothing at all, whose image has one colour or shows what has no
            name.
        unrelated_share: Share of scenes whose things have other names than Scenes know (`moai.scenes.renaming`) and
            whose image, of seven in ten, is that of another scene, or of nothing: there the verbalization is right,
            whatever the image shows.
    """

    length: Positive = 1000
    split: Literal["train", "validation", "test"] = "train"
    seed: Count = 0
    start: Count = 0
    image_size: Positive = 448
    num_objects: tuple[StrictInt, StrictInt] = (0, 9)
    form: Literal["questions", "captions"] = "questions"
    num_questions: Positive = 4
    kinds: tuple[str, ...] = QUESTION_KINDS
    sign_probability: Number = 0.6
    made_up_share: Number = 0.4
    forged_share: Number = 0.25
    image_noise: Number = 0.0
    noise: Annotated[Number, Field(ge=0)] = 1.0
    names: tuple[str, ...] = ()
    has_one_wording: StrictBool = False
    closeup_share: Share = 0.0
    blank_share: Share = 0.0
    unrelated_share: Share = 0.0

    def __post_init__(self) -> None:
        for name in ("unrelated_share", "blank_share"):
            if getattr(self, name) > 0 and self.form != "questions":
                raise ValueError(
                    f"`{name}` is for questions, got it for captions: they say what the image shows. Leave it out."
                )

    def stream(self, num_questions: int) -> Scenes:
        """The scenes, with at most so many questions each."""
        return Scenes(
            self.split,
            self.seed,
            self.image_size,
            (self.num_objects[0], self.num_objects[-1]),
            num_questions,
            self.kinds,
            self.sign_probability,
            self.made_up_share,
            self.forged_share,
            self.image_noise,
            names=self.names,
            has_one_wording=self.has_one_wording,
            closeup_share=self.closeup_share,
            blank_share=self.blank_share,
        )


@settings
class SourceSettings:
    """One source of samples: a file or folder of conversations, or scenes.

    Attributes:
        path: `.json` / `.jsonl` (LLaVA's `image` + `conversations`, `images` + `messages`, or MMC4's `text_list` +
            `image_info`, for models that read documents), `.parquet`, a folder of Parquet files, or a folder that
            `datasets`' save_to_disk wrote.
        scenes: Instead of `path`: synthetic scenes.
        image_folder: Where relative image paths begin; None = beside the file.
        split: Split of a `datasets` folder that has several.
        column: Column of the images in a table; None = the only one that holds images.
        limit: Use only the first rows, this many; None = all.
        verbalizations: Where this source's come from; None = as `DataSettings` says.
        repeats: Its samples come so many times in an epoch: how often they are met, beside those of other sources.
        weight: Each of its targets counts so much in the loss, which is the weighted mean over a step's.
    """

    path: Location | None = None
    scenes: SceneSource | None = None
    image_folder: Location | None = None
    split: str | None = None
    column: str | None = None
    limit: Positive | None = None
    verbalizations: _Verbalizations | None = None
    repeats: Positive = 1
    weight: Annotated[Number, Field(gt=0)] = 1.0

    def __post_init__(self) -> None:
        if (self.path is None) == (self.scenes is None):
            raise ValueError("a source needs exactly one of `path` and `scenes`. Name a file, or describe scenes.")
        if self.verbalizations == "truth" and self.scenes is None:
            raise ValueError("only scenes have a truth to verbalize; for a file choose cache, live or none.")
        if self.verbalizations == "cache" and self.scenes is not None:
            raise ValueError(
                "scenes are painted on the fly and stand in no cache; choose truth, live or none, or write them to "
                "files first (python -m moai.scenes.export) and verbalize those."
            )


def _as_sources(value: Any) -> Any:
    """One source in place of a list of them, and a path in place of a mapping that holds it."""
    sources = [value] if isinstance(value, str | Path | Mapping | SourceSettings) else value
    if not isinstance(sources, list | tuple):
        return sources
    return [{"path": source} if isinstance(source, str | Path) else source for source in sources]


@settings
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
        max_length: Longest sample in tokens, images and answer included; None = as the processor says. What the model
            cannot read is too long in any case.
        max_images: Most images in one sample.
        max_bad_rows: How many malformed rows, unreadable images and too long samples are skipped before it is an
            error.
        check_images: What is looked at before training: "path" (the file is there), "header" (it is read, begins as
            an image of a size that may be decoded, and the cache holds it; one that is cut off behind its header is
            found when its sample is needed, and is a bad row then), or "decode" (every pixel:
            docs/finetune.md says what it costs).
        chat_template: Template (name) of prompts; None = the processor's default.
    """

    sources: Annotated[tuple[SourceSettings, ...], BeforeValidator(_as_sources)]
    verbalizations: _Verbalizations | None = None
    cache: Location | None = None
    fingerprint: str | None = None
    on_missing: _MissingAction = "error"
    kinds: tuple[str, ...] | None = None
    map: _Map = "auto"
    timeout_s: Number | None = 30.0
    max_length: Positive | None = None
    max_images: Positive = 8
    max_bad_rows: Count = 0
    check_images: _Check = "header"
    chat_template: str | None = None

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("expected at least one source of training samples, got none. Name a file under `sources`.")
        if self.cache is None and "cache" in {self.choose_verbalizations(source) for source in self.sources}:
            raise ValueError("verbalizations come from a cache, but `cache` names no folder. Name the --out folder.")
        for source in self.sources:
            if source.scenes is None or not source.scenes.unrelated_share:
                continue
            if (chosen := self.choose_verbalizations(source)) != "truth":
                raise ValueError(
                    f"expected `verbalizations: truth` beside `unrelated_share`, got {chosen}: nothing else knows what "
                    "the unrelated image does not show. Choose it, or leave `unrelated_share` out."
                )

    def choose_verbalizations(self, source: SourceSettings) -> str:
        """The source of one data source's verbalizations."""
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
        return load_settings(cls, values, where="data")
