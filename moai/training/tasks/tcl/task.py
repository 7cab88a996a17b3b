"""TCL as a task: micro-batches of captioned images, their loss, queues that all processes fill together."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist

from moai.data.image_samples import CaptionedImage, ImageDataset
from moai.models.tcl.modeling_tcl import TCLModel
from moai.models.tcl.processing_tcl import TCLProcessor
from moai.processing.pixel_values import compute_pixel_values

from ...task import Batch
from ..augmentation import AugmentationSettings, draw_view
from ..image_task import ImageTask
from .losses import mask_words
from .objective import CONTRASTS, TCLObjective
from .settings import TCLSettings

__all__ = ["TCLCollator", "TCLTask", "gather_features"]

_PARTS = (*CONTRASTS, "matching", "words")


class TCLCollator:
    """Makes two views of each image and hides words of its caption.

    Args:
        processor: The model's.
        augmentation: How views differ.
        mask_probability: Share of words that are hidden.
    """

    def __init__(self, processor: TCLProcessor, augmentation: AugmentationSettings, mask_probability: float) -> None:
        self.processor, self.augmentation, self.mask_probability = processor, augmentation, mask_probability

    def __call__(self, drawn: list[tuple[CaptionedImage, Random]]) -> dict[str, torch.Tensor]:
        """``pixel_values``, ``other_pixel_values``, ``input_ids``, ``attention_mask``, ``hidden_ids``,
        ``word_labels``, and a ``seed`` for wrong partners.
        """
        side = self.processor.image_processor.size["height"]
        views: tuple[list, list] = ([], [])
        captions, hidden = [], []
        tokenizer = self.processor.tokenizer
        kept = (tokenizer.pad_token_id, tokenizer.cls_token_id)
        for sample, rng in drawn:
            for each in views:
                each.append(draw_view(sample.image, side, self.augmentation, rng))
            captions.append(rng.choice(sample.captions))
        data = {name: torch.tensor(rows) for name, rows in self.processor.encode_captions(captions).items()}
        for row, (_, rng) in zip(data["input_ids"], drawn, strict=True):
            generator = torch.Generator().manual_seed(rng.getrandbits(62))
            ids = row[None]
            words = mask_words(ids, self.mask_probability, tokenizer.mask_token_id, len(tokenizer), kept, generator)
            hidden.append(torch.cat(words))
        data["hidden_ids"], data["word_labels"] = torch.stack(hidden).unbind(1)
        for name, each in zip(("pixel_values", "other_pixel_values"), views, strict=True):
            data[name] = torch.from_numpy(compute_pixel_values(self.processor.image_processor, each))
        return data | {"seed": torch.tensor(drawn[0][1].getrandbits(62))}


def gather_features(features: torch.Tensor) -> torch.Tensor:
    """Features of a step's micro-batches on all processes, in the order of the micro-batches.

    Args:
        features: ``(k, B, E)``, of this process's micro-batches: each ``num_ranks``-th one of the step.

    Returns:
        ``(num_ranks * k * B, E)``.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return features.flatten(0, 1)
    pieces = [torch.empty_like(features) for _ in range(dist.get_world_size())]
    dist.all_gather(pieces, features.contiguous())
    return torch.stack(pieces, dim=1).flatten(0, 2)


class TCLTask(ImageTask):
    """A run of TCL.

    Args:
        settings: The recipe.
        model: What is trained.
        processor: Its processor.
        dataset: Captioned images.
        validation: Those that are not learned from.
        start: Hashes of the files that the model was loaded from.

    Attributes:
        objective: The losses with momentum copy and queues.
    """

    #: A sample is compared with the others of its micro-batch.
    fixed_settings: ClassVar[frozenset[str]] = frozenset({"optimization.micro_batch_size"})

    def __init__(
        self,
        settings: TCLSettings,
        model: TCLModel,
        processor: TCLProcessor,
        dataset: ImageDataset,
        validation: ImageDataset | None = None,
        start: Mapping[str, str] | None = None,
    ) -> None:
        collator = TCLCollator(processor, settings.augmentation, settings.mask_probability)
        super().__init__(settings, dataset, collator, validation, start or {})
        torch.manual_seed(int(np.random.SeedSequence((settings.seed, 4)).generate_state(1)[0]))  # the queues' noise
        self.objective = TCLObjective(model, settings.queue_size, settings.momentum)
        self.alpha = settings.alpha
        self._found: list[tuple[torch.Tensor, torch.Tensor]] = []  # of the present step's micro-batches

    @property
    def model(self) -> TCLModel:
        """The trained model."""
        return self.objective.model

    def make_batch(self, inputs: dict[str, torch.Tensor], step: int) -> Batch:
        """See :meth:`.image_task.ImageTask.make_batch`."""
        alpha = self.alpha * min(1.0, step / self.order.steps_per_epoch)
        seed = int(inputs.pop("seed"))
        num_tokens = float(inputs["attention_mask"].sum())
        return Batch({**inputs, "alpha": alpha, "seed": seed}, float(len(inputs["input_ids"])), num_tokens)

    def forward(self, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See :meth:`moai.training.task.Task.forward`; the counters are the losses' parts and what they count."""
        mask, objective = inputs["attention_mask"], self.objective
        features = objective.encode(inputs["pixel_values"], inputs["other_pixel_values"], inputs["input_ids"], mask)
        generator = torch.Generator(mask.device).manual_seed(inputs["seed"])
        losses = objective(features, mask, inputs["hidden_ids"], inputs["word_labels"], inputs["alpha"], generator)
        if self.training:
            self._found.append((features.momentum_image_features.float(), features.momentum_text_features.float()))
        count = len(mask)
        parts = torch.stack([*losses.contrasts.values(), losses.matching, losses.words]).detach().float() * count
        return losses.total * count, {"parts": torch.cat([parts, parts.new_tensor([count])])}

    def after_step(self, step: int) -> None:
        """Fill the queues with the step's features, and move the momentum copy."""
        objective = self.objective
        objective.clamp_temperature()
        objective.update_momentum()
        found, self._found = self._found, []
        objective.enqueue(*(gather_features(torch.stack(each)) for each in zip(*found, strict=True)))

    def extra_state(self) -> dict[str, torch.Tensor]:
        """Momentum copy and queues."""
        return {
            **{f"momentum.{name}": value for name, value in self.objective.momentum_model.named_parameters()},
            **dict(self.objective.named_buffers(recurse=False)),
        }

    def report(self, counters: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Mean of each part of the loss."""
        *parts, count = counters["parts"].tolist()
        return {"parts": {name: part / count for name, part in zip(_PARTS, parts, strict=True)}} if count else {}
