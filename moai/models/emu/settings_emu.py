"""Settings of Emu's training."""

from __future__ import annotations

from dataclasses import field

from moai.data.training_settings import DataSettings
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

    def __post_init__(self) -> None:
        super().__post_init__()
        for fields in filter(None, (self.data, self.validation)):
            if any(source.weight != 1 for source in DataSettings.from_dict(fields).sources):
                raise ValueError(
                    "expected a `weight` of 1 of every source: an Emu's loss is a mean of its own over a micro-batch. "
                    "Leave it out; `repeats` says how often a source is met."
                )
