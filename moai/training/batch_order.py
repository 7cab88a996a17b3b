"""Order of samples: batches as a function of seed and step alone, equal on every machine and after a resume."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

__all__ = ["BatchOrder"]

#: A stretch of so many batches is sorted by length: long enough to group, short enough to stay random.
_BATCHES_PER_STRETCH = 50


class BatchOrder:
    """The batches of all epochs.

    An optimizer step's batch is cut into micro-batches in a fixed order. Ranks take them in turn, so the same
    micro-batches are computed whether one process accumulates them or many share them.

    Args:
        lengths: Tokens of each sample.
        batch_size: Samples per optimizer step over all ranks.
        micro_batch_size: Samples per forward pass.
        seed: Seed.
        is_length_grouped: Samples of similar length meet.
        image_indices: For each sample a number that tells which image it is about; None = each its own.
        samples_per_image: So many samples of one image stay together, next to each other in a micro-batch; what
            is left over of an image joins other images' rest.

    Raises:
        ValueError: There are fewer samples than one batch holds, or `samples_per_image` does not divide
            `micro_batch_size`.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        micro_batch_size: int,
        seed: int = 0,
        is_length_grouped: bool = True,
        image_indices: Sequence[int] | None = None,
        samples_per_image: int = 1,
    ) -> None:
        if len(lengths) < batch_size:
            raise ValueError(
                f"expected at least `optimization.batch_size` = {batch_size} samples, got {len(lengths)}. Choose a "
                "smaller batch or add data."
            )
        if micro_batch_size % samples_per_image:
            raise ValueError(
                "expected `optimization.micro_batch_size` to be a multiple of `samples_per_image`, got "
                f"{micro_batch_size} and {samples_per_image}."
            )
        if samples_per_image > 1 and image_indices is None:
            raise ValueError(
                "`optimization.samples_per_image` needs a dataset whose `image_indices` say which image each sample is "
                "about. Set it to 1, or add them."
            )
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.image_indices = None if image_indices is None else np.asarray(image_indices, dtype=np.int64)
        self.samples_per_image = samples_per_image
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.seed, self.is_length_grouped = seed, is_length_grouped
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of an epoch; the samples left over differ from epoch to epoch."""
        return len(self.lengths) // self.batch_size

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of one step, over all ranks."""
        return self.batch_size // self.micro_batch_size

    def _draw_epoch(self, epoch: int) -> np.ndarray:
        """``(steps, batch_size)`` sample indices."""
        rng = np.random.default_rng((self.seed, epoch))
        order = self._draw_clusters(rng)[: self.steps_per_epoch * self.batch_size // self.samples_per_image]
        if not self.is_length_grouped:
            return order.reshape(-1, self.batch_size)
        stretch = self.batch_size // self.samples_per_image * _BATCHES_PER_STRETCH
        sorted_stretches = [
            part[np.argsort(-self.lengths[part].max(axis=1), kind="stable")]
            for part in np.split(order, range(stretch, len(order), stretch))
        ]
        batches = np.concatenate(sorted_stretches).reshape(-1, self.batch_size)
        return batches[rng.permutation(len(batches))]

    def _draw_clusters(self, rng: np.random.Generator) -> np.ndarray:
        """``(clusters, samples_per_image)`` sample indices in random order, as many of one image as there are."""
        order, size = rng.permutation(len(self.lengths)), self.samples_per_image
        if self.image_indices is None or size == 1:
            return order[: len(order) // size * size].reshape(-1, size)
        order = order[np.argsort(self.image_indices[order], kind="stable")]
        _, starts, counts = np.unique(self.image_indices[order], return_index=True, return_counts=True)
        place = np.arange(len(order)) - np.repeat(starts, counts)  # within its image
        is_whole = place < np.repeat(counts // size * size, counts)
        whole, rest = order[is_whole], rng.permutation(order[~is_whole])
        clusters = np.concatenate([whole, rest[: len(rest) // size * size]]).reshape(-1, size)
        return clusters[rng.permutation(len(clusters))]

    def batch(self, step: int) -> np.ndarray:
        """``(batch_size,)`` sample indices of an optimizer step, longest first where lengths are grouped."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[place]

    def micro_batches(self, step: int, rank: int = 0, num_ranks: int = 1) -> list[list[int]]:
        """A rank's micro-batches of a step, in the order in which it computes them."""
        chunks = self.batch(step).reshape(-1, self.micro_batch_size)
        return [chunk.tolist() for chunk in chunks[rank::num_ranks]]
