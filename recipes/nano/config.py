"""The recipe of moai-nano, read from YAML; a misspelt field is an error that names the known ones."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from .loop import LoopSettings
from .scene_shards import ShardSettings

__all__ = [
    "MultimodalSettings",
    "NanoConfig",
    "PhraseSettings",
    "SCENES_DOMAIN",
    "TextSettings",
    "build_nano_config",
    "load_nano_config",
]

T = TypeVar("T")

#: What runs from a wheel, offline; a black map where there are no segments, as in training.
OCR_ALONE: dict[str, Any] = {"verbalizers": [{"kind": "ocr", "backend": "rapidocr"}], "map": "always"}

SCENES_DOMAIN = "synthetic Scenes (docs/scenes.md)"


@dataclass(frozen=True)
class TextSettings:
    """Text pretraining.

    Attributes:
        loop: How to optimise.
        shards: What to read.
        batch_size: Scenes per step over all ranks.
        text_weight: Weight of the loss on the verbalization itself.
    """

    loop: LoopSettings
    shards: ShardSettings
    batch_size: int = 64
    text_weight: float = 0.1


@dataclass(frozen=True)
class PhraseSettings:
    """Pretraining of the compressor on verbalizations alone.

    Attributes:
        loop: How to optimise.
        shards: What to read.
        batch_size: Scenes per step over all ranks.
    """

    loop: LoopSettings
    shards: ShardSettings
    batch_size: int = 32


@dataclass(frozen=True)
class MultimodalSettings:
    """Training of the whole model, first with single random experts, then with gates (paper, section 3.3).

    Attributes:
        loop: How to optimise both stages together.
        shards: What to read.
        first_stage_steps: Steps with one random expert per stream and layer; the gates rest.
        batch_size: Scenes per step over all ranks.
        questions_per_scene: Questions drawn from each scene.
        longest_answer: Targets are cut to so many tokens; a listing's beginning teaches as much as the whole.
        without_auxiliary_share: Share of scenes that come without auxiliary tokens, so that the model still answers
            as well as its eye allows when no verbalizer is there.
        kind_weights: Weight of a kind's answer tokens in the loss, 1 where none is given.
        recall_weight: Weight of the auxiliary objective :class:`moai.training.phrase_recall.PhraseRecall`, 0 = none.
        vision: Fields of CLIPVisionConfig.
        compressor: Fields of CompressorConfig.
        mixer: Fields of MixerConfig.
    """

    loop: LoopSettings
    shards: ShardSettings
    first_stage_steps: int
    batch_size: int = 16
    questions_per_scene: int = 6
    longest_answer: int = 48
    without_auxiliary_share: float = 0.1
    kind_weights: dict[str, float] = field(default_factory=dict)
    recall_weight: float = 0.0
    vision: dict[str, Any] = field(default_factory=dict)
    compressor: dict[str, Any] = field(default_factory=dict)
    mixer: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NanoConfig:
    """Everything that decides what moai-nano becomes; a stage that is None is left out.

    Attributes:
        tokenizer: ``vocab_size`` and ``num_scenes`` to learn merges from.
        decoder: Fields of LlamaConfig; the vocabulary is filled in.
        text: Text pretraining.
        copying: A second part of it, from the first one's weights; its scenes ask for the verbalization itself.
        phrases: Pretraining of the compressor.
        questions: Compressor, mixers and decoder together without pictures: short sequences, many questions.
        multimodal: Training of the whole model.
        practice: Compressor, mixers and decoder once more without pictures, where their skills are weakest.
        start: Folder of a finished moai-nano that the stage `practice` starts from; None = the stage before it.
        verbalizer_settings: Content of the checkpoint's ``verbalizers.json``.
        domain: The only pictures that the checkpoint says it knows (`MoAIConfig.domain`).
        seed: Seed of the initial weights.
        num_ranks: Processes of one thread each.
    """

    tokenizer: dict[str, int] = field(default_factory=dict)
    decoder: dict[str, Any] = field(default_factory=dict)
    text: TextSettings | None = None
    copying: TextSettings | None = None
    phrases: PhraseSettings | None = None
    questions: MultimodalSettings | None = None
    multimodal: MultimodalSettings | None = None
    practice: MultimodalSettings | None = None
    start: str | None = None
    verbalizer_settings: dict[str, Any] = field(default_factory=lambda: dict(OCR_ALONE))
    domain: str = SCENES_DOMAIN
    seed: int = 0
    num_ranks: int = 1


def _build(kind: type[T], values: dict[str, Any], where: str) -> T:
    known = {item.name: item for item in fields(kind)}
    if not isinstance(values, dict) or (unknown := set(values) - set(known)):
        got = sorted(unknown) if isinstance(values, dict) else values
        raise ValueError(f"`{where}` must have fields among {sorted(known)}, got {got}. Correct the spelling.")
    nested = {
        "loop": LoopSettings,
        "shards": ShardSettings,
        "multimodal": MultimodalSettings,
        "questions": MultimodalSettings,
        "practice": MultimodalSettings,
    }
    nested |= dict.fromkeys(("text", "copying"), TextSettings) | {"phrases": PhraseSettings}
    filled = {
        name: _build(nested[name], value, f"{where}.{name}") if name in nested and value is not None else value
        for name, value in values.items()
    }
    if "curriculum" in filled:
        filled["curriculum"] = tuple(tuple(pair) for pair in filled["curriculum"])
    for name in ("kinds", "slow_names", "verbalizers"):
        if name in filled:
            filled[name] = tuple(filled[name])
    try:
        return kind(**filled)
    except TypeError as error:
        raise ValueError(f"`{where}` is incomplete: {error}. Add the field.") from error


def build_nano_config(values: dict[str, Any], where: str) -> NanoConfig:
    """Check a recipe's values.

    Args:
        values: What YAML gave.
        where: Name of the source, for messages.

    Raises:
        ValueError: A field is unknown or missing.
    """
    return _build(NanoConfig, values, where)


def load_nano_config(path: str | Path) -> NanoConfig:
    """Read a recipe.

    Raises:
        ValueError: A field is unknown or missing.
    """
    return build_nano_config(yaml.safe_load(Path(path).read_text(encoding="utf-8")), Path(path).name)
