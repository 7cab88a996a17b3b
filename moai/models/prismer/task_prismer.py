"""Prismer's training: label-smoothed cross entropy, summed over a sample's tokens, mean over samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from moai.data.collator import WEIGHTS
from moai.training.tasks.answers import AnswersTask
from moai.training.trained_parts import base_model

from .collator_prismer import PrismerCollator
from .settings_prismer import PrismerTrainSettings

__all__ = ["PrismerTask"]


class PrismerTask(AnswersTask):
    """One stage of training (arXiv 2303.02506, section 4)."""

    collator_class = PrismerCollator

    @classmethod
    def freeze(cls, model: nn.Module, settings: PrismerTrainSettings) -> None:
        """See :meth:`.AnswersTask.freeze`."""
        train = settings.train
        if train.parts is not None or train.adapter is not None:
            super().freeze(model, settings)
        else:
            model.float().freeze(train.mode or "freeze_vision")

    def count_targets(self, labels: torch.Tensor, weights: torch.Tensor | None = None) -> float:
        """Samples: the loss of each is a sum."""
        return len(labels) if weights is None else float(weights.sum())

    def forward(self, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See :meth:`.Task.forward`; the loss counts samples."""
        samples = dict(inputs["samples"])
        labels, weights = samples.pop("labels")[:, -inputs["window"] :], samples.pop(WEIGHTS, None)
        logits = self.model(**samples, logits_to_keep=inputs["window"]).logits
        losses = base_model(self.model).compute_sample_losses(logits, labels)
        return (losses if weights is None else losses * weights).sum(), {}
