"""Settings of Flamingo's training."""

from __future__ import annotations

from dataclasses import field

from moai.settings import settings
from moai.training.train_settings import NewModelSettings, TrainedParts, TrainSettings

__all__ = ["FlamingoTrainSettings", "FlamingoTrainedParts"]


@settings
class FlamingoTrainedParts(TrainedParts):
    """The trained model; see :class:`.TrainedParts`.

    Where neither ``parts`` nor an adapter is named, what is new: ``resampler``, ``gated_blocks`` and ``new_tokens``,
    the embeddings of ``<image>`` and ``<|endofchunk|>``.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adapter is not None and "new_tokens" in (self.parts or ()):
            raise ValueError("an adapter keeps no single embeddings, got `new_tokens` in `train.parts`. Leave it out.")


@settings(kw_only=True)
class FlamingoTrainSettings(TrainSettings):
    """One stage of training; see :class:`.TrainSettings`. ``model.vision`` and ``model.text`` make a new Flamingo."""

    model: NewModelSettings
    train: FlamingoTrainedParts = field(default_factory=FlamingoTrainedParts)
