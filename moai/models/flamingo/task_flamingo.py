"""Flamingo's training: new parts around frozen backbones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from moai.training.tasks.answers import AnswersTask
from moai.training.trained_parts import base_model

from .backbones import build_processor, load_tokenizer
from .collator_flamingo import FlamingoCollator
from .modeling_flamingo import FlamingoForConditionalGeneration
from .processing_flamingo import FlamingoProcessor
from .settings_flamingo import FlamingoTrainSettings
from .trainable_rows import keep_gradients_of_rows

__all__ = ["FlamingoTask"]

_NEW = {"resampler", "gated_blocks", "new_tokens"}


class FlamingoTask(AnswersTask):
    """One stage of training (arXiv 2308.01390, section 3): only the new parts learn, where nothing else is said."""

    collator_class = FlamingoCollator

    @classmethod
    def parts_of(cls, model: nn.Module) -> dict[str, str]:
        """See :meth:`.AnswersTask.parts_of`; ``new_tokens`` is the word embedding, of which two rows are trained."""
        inner = base_model(model)
        embedding = inner.get_input_embeddings()
        name = next(name for name, module in inner.named_modules() if module is embedding)
        own = {"new_tokens": rf"(?:^|\.){re.escape(name)}\."}
        parts = super().parts_of(model)
        adapter = {part: pattern for part, pattern in parts.items() if part not in inner.trainable_parts}
        return adapter | own | parts

    @classmethod
    def whole_parts(cls, settings: FlamingoTrainSettings, parts: Mapping[str, str]) -> set[str]:
        """See :meth:`.AnswersTask.whole_parts`; a decoder is trained with its whole embedding."""
        chosen = super().whole_parts(settings, parts)
        if settings.train.parts is None and settings.train.adapter is None:
            return set(_NEW)
        return chosen | ({"new_tokens"} if "decoder" in chosen else set())

    @classmethod
    def freeze(cls, model: nn.Module, settings: FlamingoTrainSettings) -> None:
        """See :meth:`.AnswersTask.freeze`; the gradients of all but the two new rows are zero."""
        super().freeze(model, settings)
        chosen, inner = cls.whole_parts(settings, {}), base_model(model)
        if "new_tokens" in chosen and "decoder" not in chosen:
            rows = (inner.config.image_token_id, inner.config.end_of_chunk_token_id)
            keep_gradients_of_rows(inner.get_input_embeddings(), rows)

    @classmethod
    def make_new(cls, settings: FlamingoTrainSettings) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
        """See :meth:`.AnswersTask.make_new`: around two backbones."""
        chosen = settings.model
        dtype = None if chosen.dtype is None else getattr(torch, chosen.dtype)
        model = FlamingoForConditionalGeneration.from_backbones(
            chosen.vision, chosen.text, dtype=dtype, **chosen.fields
        )
        tokenizer = load_tokenizer(chosen.text)
        if tokenizer is None:
            raise ValueError(f"expected a tokenizer beside the decoder in `model.text`, got {chosen.text} without one.")
        return model, build_processor(model.config, tokenizer, chosen.vision)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """See :meth:`.Task.decays`: the matrices of the gated blocks alone, as in OpenFlamingo, and of an adapter."""
        is_new = "gated_blocks" in name or "lora_" in name
        return is_new and super().decays(name, parameter)

    def forward(self, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See :meth:`.AnswersTask.forward`."""
        weight = base_model(self.model).get_input_embeddings().weight
        chosen = self.whole_parts(self.settings, self.parts)
        if isinstance(weight, DTensor) and "new_tokens" in chosen and "decoder" not in chosen:
            raise ValueError(
                "expected whole embeddings where two of their rows are trained, got pieces on several processes. Use "
                "DDP, or `train.parts` without new_tokens."
            )
        return super().forward(inputs)
