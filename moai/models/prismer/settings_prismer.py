"""Settings of Prismer's training."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from moai.settings import settings
from moai.training.train_settings import TrainedParts, TrainSettings

__all__ = ["PrismerTrainSettings", "PrismerTrainedParts"]


@settings
class PrismerTrainedParts(TrainedParts):
    """The trained model; see :class:`.TrainedParts`.

    Attributes:
        mode: The original's choice of what rests, see :data:`.modeling_prismer.FREEZE_MODES`; None = freeze_vision, its
            choice for fine-tuning, where neither ``parts`` nor an adapter is named.
    """

    mode: Literal["none", "freeze_vision", "freeze_lang", "freeze_lang_vision"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode is not None and (self.parts is not None or self.adapter is not None):
            raise ValueError("`train.mode` says all that is trained. Leave it, or `train.parts` and `adapter`, out.")


@settings(kw_only=True)
class PrismerTrainSettings(TrainSettings):
    """One stage of training; see :class:`.TrainSettings`. ``data.chat_template`` is the task: vqa or caption."""

    train: PrismerTrainedParts = field(default_factory=PrismerTrainedParts)
