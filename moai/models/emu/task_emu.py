"""Emu's training: the next word, or the next embedding of an image, in sequences of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from moai.training.task import Batch
from moai.training.tasks.answers import AnswersTask

from .backbones import build_processor, load_tokenizer
from .collator_emu import EmuCollator
from .modeling_emu import EmuForConditionalGeneration
from .processing_emu import EmuProcessor
from .settings_emu import EmuTrainSettings

__all__ = ["EmuTask"]


class EmuTask(AnswersTask):
    """One stage of training (arXiv 2307.05222, section 3): documents, or instructions with an adapter.

    The loss is the model's own: mean cross entropy of a micro-batch's text plus the mean squared error of its images'
    embeddings. A mean over both depends on which samples go through together.
    """

    collator_class = EmuCollator
    fixed_settings: ClassVar[frozenset[str]] = frozenset({"optimization.micro_batch_size"})

    @classmethod
    def whole_parts(cls, settings: EmuTrainSettings, parts: Mapping[str, str]) -> set[str]:
        """See :meth:`.AnswersTask.whole_parts`."""
        if settings.train.parts is None and settings.train.adapter is None:
            return set(EmuForConditionalGeneration.trainable_parts)
        return super().whole_parts(settings, parts)

    @classmethod
    def make_new(cls, settings: EmuTrainSettings) -> tuple[EmuForConditionalGeneration, EmuProcessor]:
        """See :meth:`.AnswersTask.make_new`: around two backbones."""
        chosen = settings.model
        tokenizer = load_tokenizer(chosen.text)
        if tokenizer is None:
            raise ValueError(f"expected a tokenizer beside the decoder in `model.text`, got {chosen.text} without one.")
        dtype = None if chosen.dtype is None else getattr(torch, chosen.dtype)
        model = EmuForConditionalGeneration.from_backbones(chosen.vision, chosen.text, dtype=dtype, **chosen.fields)
        return model, build_processor(model.config, tokenizer, chosen.vision)

    def make_batch(self, samples: Mapping[str, torch.Tensor], options: Mapping[str, Any]) -> Batch:
        """See :meth:`.AnswersTask.make_batch`; the loss counts samples."""
        count = float(len(samples["input_ids"]))
        return Batch({"samples": dict(samples)}, count, float(samples["attention_mask"].sum()))

    def forward(self, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See :meth:`.Task.forward`; the loss counts samples, the counters are its two parts and that count."""
        outputs = self.model(**inputs["samples"], use_cache=False)
        count = len(inputs["samples"]["input_ids"])
        found = outputs.text_loss, outputs.regression_loss
        parts = [torch.zeros_like(outputs.loss) if part is None else part for part in found]
        counted = torch.stack([*parts, torch.ones_like(outputs.loss)]).detach().float() * count
        return outputs.loss * count, {"parts": counted}

    def report(self, counters: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Mean of each part of the loss."""
        text, image, count = counters["parts"].tolist()
        return {"parts": {"text": text / count, "image": image / count}} if count else {}
