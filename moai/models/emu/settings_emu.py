"""Settings of Emu's training."""

from __future__ import annotations

from dataclasses import field

from moai.settings import settings
from moai.training.train_settings import NewModelSettings, TrainedParts, TrainSettings

__all__ = ["EmuTrainSettings", "EmuTrainedParts"]


@settings
class EmuTrainedParts(TrainedParts):
    """The trained model; see :class:`.TrainedParts`.

    Where neither ``parts`` nor an adapter is named, all of it, as in the original's pre-training.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learns_prompt:
            raise ValueError(
                "expected an adapter of weights, such as {peft_type: LORA, r: 16}, got a learned prompt: it hands an "
                "Emu embeddings, in which the places of images do not show."
            )


@settings(kw_only=True)
class EmuTrainSettings(TrainSettings):
    """One stage of training; see :class:`.TrainSettings`. ``model.vision`` and ``model.text`` make a new Emu."""

    model: NewModelSettings
    train: EmuTrainedParts = field(default_factory=EmuTrainedParts)
