"""Training on answers: samples in an order of their own, and the loss on answer tokens of any model that answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from moai.data.collator import CollatedBatches, iterate_batches
from moai.processing.token_roles import IGNORE_INDEX

from ..batch_order import BatchOrder, MicroBatchSampler
from ..processes import ignore_interrupts
from ..run_identity import hash_samples
from ..task import Batch, Task
from ..train_settings import TrainSettings
from ..trained_parts import rate_part_of, set_training_mode

__all__ = ["AnswersTask", "answer_loss", "base_model", "count_targets", "target_window"]


def count_targets(labels: torch.Tensor) -> int:
    """Tokens of ``(B, L)`` labels that carry a loss: each is predicted from the position before it."""
    return int((labels[:, 1:] != IGNORE_INDEX).sum())


def target_window(labels: torch.Tensor) -> int:
    """Number of last positions that need logits: from the one before the first answer token to the end.

    Samples are padded on the left, so answers stand together at the end; logits of a whole prompt, images included,
    would take most of the memory (vocabulary x 1,300 positions in MoAI-7B) and teach nothing.

    Args:
        labels: ``(B, L)``, -100 = no loss.
    """
    columns = (labels != IGNORE_INDEX).any(dim=0).nonzero()
    length = labels.shape[1]
    return length if len(columns) == 0 else min(length, length - int(columns[0]) + 1)


def answer_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy summed over answer tokens, a scalar.

    Args:
        logits: ``(B, W, vocabulary)`` of the last W positions.
        labels: ``(B, L)``, -100 = no loss.
    """
    targets = labels[:, -logits.shape[1] :][:, 1:]
    return F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )


def base_model(model: nn.Module) -> nn.Module:
    """The model inside a PEFT adapter, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _unchanged(batch: Any) -> Any:
    """What a loader makes of a batch that is one already."""
    return batch


class AnswersTask(Task):
    """One stage of training on questions about images.

    Args:
        settings: The recipe.
        model: A model that answers, or one with a PEFT adapter.
        dataset: A map-style dataset of samples with ``lengths``, and perhaps ``pictures``.
        collator: What makes a batch of its samples.
        validation: Samples that are not learned from.
        start: Hashes of the files that the model was loaded from; None = its frozen weights are hashed instead.
    """

    def __init__(
        self,
        settings: TrainSettings,
        model: nn.Module,
        dataset: Any,
        collator: Callable[[list[Any]], Mapping[str, torch.Tensor]],
        validation: Any = None,
        start: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        # Read by FSDP's wrapping policy, which sees this module only and refuses names that it does not find in it.
        present = {type(module).__name__ for module in model.modules()}
        self._no_split_modules = sorted(present & set(getattr(base_model(model), "_no_split_modules", ()) or ()))
        self.settings, self.dataset, self.collator, self.validation = settings, dataset, collator, validation
        self.start = start
        chosen = settings.optimization
        order = (settings.seed, chosen.is_length_grouped, getattr(dataset, "pictures", None))
        sizes = (chosen.batch_size, chosen.micro_batch_size)
        self.order = BatchOrder(dataset.lengths, *sizes, *order, chosen.samples_per_picture)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        chosen = self.settings.optimization
        return chosen.num_steps or max(1, round((chosen.num_epochs or 0) * self.order.steps_per_epoch))

    def batches(self, first_step: int, last_step: int, rank: int, num_ranks: int) -> Iterator[Batch]:
        """See :meth:`.Task.batches`; ``num_workers`` processes prepare samples."""
        loader = DataLoader(
            CollatedBatches(self.dataset, self.collator),
            batch_size=None,
            sampler=MicroBatchSampler(self.order, first_step, last_step, rank, num_ranks),
            collate_fn=_unchanged,
            num_workers=self.settings.num_workers,
            pin_memory=next(self.model.parameters()).device.type == "cuda",
            worker_init_fn=ignore_interrupts,
            generator=torch.Generator(),  # the global one would advance by one draw
        )
        per_step = self.order.num_micro_batches // num_ranks
        for number, samples in enumerate(iterate_batches(loader)):
            yield self._batch(samples, self.options(first_step + number // per_step))

    def options(self, step: int) -> dict[str, Any]:
        """Further arguments of the model in a step; what is random in them depends on seed and step alone.

        Args:
            step: Steps before it.
        """
        return {}

    def validation_options(self, place: int) -> dict[str, Any]:
        """The same for a validation batch: each has its own, the same at every measurement."""
        return {}

    def _batch(self, samples: Mapping[str, torch.Tensor], options: Mapping[str, Any]) -> Batch:
        inputs = {"samples": dict(samples), "options": dict(options), "window": target_window(samples["labels"])}
        return Batch(inputs, count_targets(samples["labels"]), float(samples["attention_mask"].sum()))

    def forward(self, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See :meth:`.Task.forward`; the loss counts answer tokens."""
        samples = dict(inputs["samples"])
        labels = samples.pop("labels")
        outputs = self.model(**samples, **inputs["options"], logits_to_keep=inputs["window"], use_cache=False)
        return answer_loss(outputs.logits, labels), {}

    def part_of(self, name: str) -> str:
        """See :func:`.trained_parts.rate_part_of`."""
        return rate_part_of(name)

    def set_training_mode(self) -> None:
        """See :func:`.trained_parts.set_training_mode`."""
        set_training_mode(self.model)

    def identity(self) -> dict[str, Any]:
        """Contents of the start, of the samples and of those for validation."""
        named = {"data": self.dataset, "validation": self.validation}
        found = {name: self._identify(dataset) for name, dataset in named.items() if dataset is not None}
        return (super().identity() if self.start is None else {"start": dict(self.start)}) | found

    @staticmethod
    def _identify(dataset: Any) -> dict[str, Any]:
        # Last: tokens change with the rows, and with settings that were compared before.
        lengths = np.asarray(getattr(dataset, "lengths", ()), dtype=np.int64)
        return {**hash_samples(dataset), "num_samples": len(dataset), "num_tokens": int(lengths.sum())}

    @property
    def num_validation_batches(self) -> int:
        """Micro-batches of the validation samples."""
        size = self.settings.optimization.micro_batch_size
        return 0 if self.validation is None else -(-len(self.validation) // size)

    def validation_batch(self, place: int) -> Batch:
        """See :meth:`.Task.validation_batch`."""
        size = self.settings.optimization.micro_batch_size
        chosen = range(place * size, min((place + 1) * size, len(self.validation)))
        samples = self.collator([self.validation[index] for index in chosen])
        return self._batch(samples, self.validation_options(place))
