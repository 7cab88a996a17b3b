"""Settings of training any image-text-to-text model of transformers."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from moai.settings import settings
from moai.training.train_settings import TrainedParts, TrainSettings

__all__ = ["PromptedTrainSettings", "PromptedTrainedParts"]


@settings
class PromptedTrainedParts(TrainedParts):
    """The trained model: LoRA on the decoder where nothing else is said; see :class:`.TrainedParts`.

    Without an adapter (``adapter: null``) and ``parts`` all but the vision tower is trained.
    """

    adapter: dict[str, Any] | None = field(
        default_factory=lambda: {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "lora_dropout": 0.05}
    )


@settings(kw_only=True)
class PromptedTrainSettings(TrainSettings):
    """One stage of training; see :class:`.TrainSettings`."""

    train: PromptedTrainedParts = field(default_factory=PromptedTrainedParts)
