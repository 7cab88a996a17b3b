"""The recipe of moai-nano, read from YAML."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Any

from pydantic import StrictInt

from moai.settings import Number, load_settings, settings
from recipes.stages import StageSettings

from .scenes import SHARD_FORM, SceneSettings

__all__ = [
    "SCENES_DOMAIN",
    "MultimodalSettings",
    "NanoConfig",
    "PatchSettings",
    "PhraseSettings",
    "TextSettings",
    "load_nano_config",
]

#: What runs from a wheel, offline; a black map where there are no segments, as in training.
OCR_ALONE: dict[str, Any] = {
    "verbalizers": [{"kind": "ocr", "backend": "rapidocr"}],
    "words": SHARD_FORM,
    "map": "always",
}

SCENES_DOMAIN = "synthetic Scenes (docs/scenes.md)"


@settings(kw_only=True)
class PhraseSettings(StageSettings):
    """Pretraining of the compressor on verbalizations alone.

    Attributes:
        shards: What to read.
    """

    shards: SceneSettings


@settings(kw_only=True)
class PatchSettings(StageSettings):
    """Pretraining of the vision tower and its projector on images alone.

    Attributes:
        shards: What to look at, with images.
        vision: Fields of CLIPVisionConfig of a new tower in place of the start's; none = the start's goes on.
    """

    shards: SceneSettings
    vision: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.shards.with_images and self.shards.patch_size):
            raise ValueError("expected `with_images` and a `patch_size` in the shards of `patches`, got one without.")


@settings(kw_only=True)
class TextSettings(StageSettings):
    """Text pretraining.

    Attributes:
        shards: What to read.
        text_weight: Weight of the loss on the verbalization itself.
    """

    shards: SceneSettings
    text_weight: Number = 0.1


@settings(kw_only=True)
class MultimodalSettings(StageSettings):
    """Training of the whole model under its gates.

    Attributes:
        shards: What to read.
        questions_per_scene: Questions drawn from each scene.
        longest_answer: Targets are cut to so many tokens; a listing's beginning teaches as much as the whole.
        without_auxiliary_share: Share of scenes that come without auxiliary tokens, so that the model still answers
            as well as its eye allows when no verbalizer is there.
        kind_weights: Weight of a kind's answer tokens in the loss, 1 where none is given.
        recall_weight: Weight of the auxiliary objective :class:`.phrase_recall.PhraseRecall`, 0 = none.
        vision: Fields of CLIPVisionConfig.
        compressor: Fields of CompressorConfig.
        mixer: Fields of MixerConfig.
    """

    shards: SceneSettings
    questions_per_scene: StrictInt = 6
    longest_answer: StrictInt = 48
    without_auxiliary_share: Number = 0.1
    kind_weights: dict[str, Number] = field(default_factory=dict)
    recall_weight: Number = 0.0
    vision: dict[str, Any] = field(default_factory=dict)
    compressor: dict[str, Any] = field(default_factory=dict)
    mixer: dict[str, Any] = field(default_factory=dict)


@settings
class NanoConfig:
    """Settings of moai-nano's recipe; a stage that is None is left out.

    Attributes:
        tokenizer: ``vocab_size`` and ``num_scenes`` to learn merges from.
        decoder: Fields of LlamaConfig; the vocabulary is filled in.
        text: Text pretraining.
        phrases: Pretraining of the compressor.
        questions: Compressor, mixers and decoder together without images: short sequences, many questions.
        patches: Pretraining of the vision tower.
        multimodal: Training of the whole model.
        practice: Compressor, mixers and decoder once more without images, where their skills are weakest.
        start: Folder of a finished moai-nano that the late stages start from (`LATE_STAGES`); None = the stage
            before them.
        num_latents: Of the compressor that goes on from ``start``; None = as many as there.
        heads: Folder of an earlier run's stage whose heads of :class:`.phrase_recall.PhraseRecall` go on beside
            ``start``, which has none; None = new ones.
        verbalizer_settings: Content of the checkpoint's ``verbalizers.json``.
        domain: The only images that the checkpoint says it knows (`MoAIConfig.domain`).
        seed: Seed of the initial weights.
        num_ranks: Processes of one thread each.
    """

    tokenizer: dict[str, int] = field(default_factory=dict)
    decoder: dict[str, Any] = field(default_factory=dict)
    text: TextSettings | None = None
    phrases: PhraseSettings | None = None
    questions: MultimodalSettings | None = None
    patches: PatchSettings | None = None
    multimodal: MultimodalSettings | None = None
    practice: MultimodalSettings | None = None
    start: str | None = None
    num_latents: StrictInt | None = None
    heads: str | None = None
    verbalizer_settings: dict[str, Any] = field(default_factory=lambda: dict(OCR_ALONE))
    domain: str = SCENES_DOMAIN
    seed: StrictInt = 0
    num_ranks: StrictInt = 1


def load_nano_config(path: str | Path) -> NanoConfig:
    """Read a recipe.

    Raises:
        ValueError: A field is unknown, missing or wrong.
    """
    return load_settings(NanoConfig, path)
