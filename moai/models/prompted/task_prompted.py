"""Training of any image-text-to-text model of transformers on answers, with the verbalization in its prompt."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from moai.data.collator import WEIGHTS
from moai.training.tasks.answers import AnswersTask, answer_loss
from moai.training.train_settings import TrainSettings
from moai.training.trained_parts import adapter_pattern, base_model

from ..context_length import count_positions
from .collator_prompted import PromptedCollator

__all__ = ["PromptedTask"]


class PromptedTask(AnswersTask):
    """One stage of training.

    Parts are ``vision`` (the tower), ``decoder`` (with its head) and ``projector``, all between them.
    """

    collator_class = PromptedCollator

    @classmethod
    def parts_of(cls, model: nn.Module) -> dict[str, str]:
        """See :meth:`.AnswersTask.parts_of`; the model says which of its modules is which."""
        inner = base_model(model)
        names = {module: name for name, module in inner.named_modules()}
        found = {"vision": inner.get_encoder("image"), "decoder": inner.get_decoder()}
        places = {part: names[module] for part, module in found.items() if names.get(module)}
        patterns = {part: rf"(?:^|\.){re.escape(place)}\." for part, place in places.items()}
        if "decoder" not in patterns or len(patterns) < 2:
            raise ValueError(f"expected a model of a vision tower and a decoder, got {type(inner).__name__}.")
        patterns["decoder"] += r"|(?:^|\.)lm_head\."
        return adapter_pattern(model) | patterns | {"projector": ""}

    @classmethod
    def whole_parts(cls, settings: TrainSettings, parts: Mapping[str, str]) -> set[str]:
        """See :meth:`.AnswersTask.whole_parts`."""
        if settings.train.parts is None and settings.train.adapter is None:
            return {"decoder", "projector"}
        return super().whole_parts(settings, parts)

    @classmethod
    def max_positions(cls, model: nn.Module) -> int | None:
        """See :meth:`.AnswersTask.max_positions`."""
        return count_positions(base_model(model).config.get_text_config())

    def forward(self, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See :meth:`.AnswersTask.forward`; some models compute all logits."""
        samples = dict(inputs["samples"])
        labels, weights, options = samples.pop("labels"), samples.pop(WEIGHTS, None), {"use_cache": False}
        if "logits_to_keep" in inspect.signature(base_model(self.model).forward).parameters:
            options["logits_to_keep"] = inputs["window"]
        return answer_loss(self.model(**samples, **options).logits, labels, weights), {}
