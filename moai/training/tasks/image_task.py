"""Tasks that learn from images alone or with captions: order of batches, preparation in worker processes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from moai.data.collator import CollatedBatches, iterate_batches
from moai.data.image_samples import CaptionedImage, ImageDataset

from ..batch_order import BatchOrder
from ..loading import load_batches
from ..task import Batch, Task
from ..train_settings import RunSettings

__all__ = ["ImageCollator", "ImageTask"]

#: Makes the inputs of a micro-batch of its images, each with a generator of its own.
ImageCollator = Callable[[list[tuple[CaptionedImage, Random]]], dict[str, torch.Tensor]]
#: Streams of random numbers.
_TRAINING, _VALIDATION = 2, 3


class _DrawnImages(Dataset[Any]):
    """Images by (stream, step, place in the step's batch, index), each with the generator of that place.

    So what is drawn does not depend on the micro-batch and the process that an image falls to.
    """

    def __init__(self, dataset: ImageDataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, key: tuple[int, int, int, int]) -> tuple[CaptionedImage, Random]:
        *place, index = key
        words = np.random.SeedSequence((self.seed, *place)).generate_state(4)
        return self.dataset[index], Random(int.from_bytes(words.astype("<u4").tobytes(), "little"))


class ImageTask(Task):
    """A task on images.

    Args:
        settings: How to optimise.
        dataset: What is learned from.
        collator: What makes a micro-batch's inputs.
        validation: Images that are not learned from; None = no validation loss.
        start: Hashes of the files that the model was loaded from.
    """

    def __init__(
        self,
        settings: RunSettings,
        dataset: ImageDataset,
        collator: ImageCollator,
        validation: ImageDataset | None,
        start: Mapping[str, str],
    ) -> None:
        super().__init__()
        self.settings, self.dataset, self.validation, self.start = settings, dataset, validation, dict(start)
        chosen = settings.optimization
        sizes = (chosen.batch_size, chosen.micro_batch_size)
        self.order = BatchOrder(np.ones(len(dataset)), *sizes, settings.seed, is_length_grouped=False)
        self.collator = collator

    @abstractmethod
    def make_batch(self, inputs: dict[str, torch.Tensor], step: int) -> Batch:
        """A micro-batch of what the collator made.

        Args:
            inputs: Its tensors.
            step: Steps done before it.
        """

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.settings.optimization.count_steps(self.order.steps_per_epoch)

    def batches(self, first_step: int, last_step: int, rank: int, num_ranks: int) -> Iterator[Batch]:
        """See :meth:`moai.training.task.Task.batches`; ``num_workers`` processes prepare them."""
        own = range(rank, self.order.num_micro_batches, num_ranks)

        def keys() -> Iterator[list[tuple[int, int, int, int]]]:
            for step in range(first_step, last_step):
                for number, indices in zip(own, self.order.micro_batches(step, rank, num_ranks), strict=True):
                    first = number * self.order.micro_batch_size
                    yield [(_TRAINING, step, first + place, index) for place, index in enumerate(indices)]

        loaded = load_batches(self._collated(self.dataset), keys, self.settings.num_workers, num_ranks)
        for number, inputs in enumerate(loaded):
            yield self.make_batch(inputs, first_step + number // len(own))

    def _collated(self, dataset: ImageDataset) -> CollatedBatches:
        return CollatedBatches(_DrawnImages(dataset, self.settings.seed), self.collator)

    def identity(self) -> dict[str, Any]:
        """Contents of the start, of the images and of those for validation."""
        named = {"data": self.dataset, "validation": self.validation}
        return {"start": self.start} | {name: found.identity() for name, found in named.items() if found is not None}

    @property
    def num_validation_batches(self) -> int:
        """Micro-batches of the images for validation; a rest that fills none is left out."""
        return 0 if self.validation is None else len(self.validation) // self.settings.optimization.micro_batch_size

    def validation_batch(self, place: int) -> Batch:
        """See :meth:`moai.training.task.Task.validation_batch`."""
        size = self.settings.optimization.micro_batch_size
        keys = [(_VALIDATION, 0, index, index) for index in range(place * size, (place + 1) * size)]
        inputs = self._collated(self.validation)[keys]
        return self.make_batch(next(iterate_batches([inputs])), self.num_steps)
