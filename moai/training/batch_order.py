"""Which samples meet in which batch: a function of seed and step alone, equal on every machine and after a resume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

__all__ = ["BatchOrder", "MicroBatchSampler"]

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

    Raises:
        ValueError: There are fewer samples than one batch holds.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        micro_batch_size: int,
        seed: int = 0,
        is_length_grouped: bool = True,
    ) -> None:
        if len(lengths) < batch_size:
            raise ValueError(
                f"expected at least `optimization.batch_size` = {batch_size} samples, got {len(lengths)}. Choose a "
                "smaller batch or add data."
            )
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.seed, self.is_length_grouped = seed, is_length_grouped
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of an epoch; the samples left over are others in every epoch."""
        return len(self.lengths) // self.batch_size

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of one step, over all ranks."""
        return self.batch_size // self.micro_batch_size

    def _draw_epoch(self, epoch: int) -> np.ndarray:
        """``(steps, batch_size)`` sample indices."""
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(len(self.lengths))
        if not self.is_length_grouped:
            return order[: self.steps_per_epoch * self.batch_size].reshape(-1, self.batch_size)
        stretch = self.batch_size * _BATCHES_PER_STRETCH
        order = order[: self.steps_per_epoch * self.batch_size]
        sorted_stretches = [
            part[np.argsort(-self.lengths[part], kind="stable")]
            for part in np.split(order, range(stretch, len(order), stretch))
        ]
        batches = np.concatenate(sorted_stretches).reshape(-1, self.batch_size)
        return batches[rng.permutation(len(batches))]

    def batch(self, step: int) -> np.ndarray:
        """``(batch_size,)`` sample indices of an optimizer step, longest first where lengths are grouped."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[place]

    def micro_batches(self, step: int, rank: int = 0, num_ranks: int = 1) -> list[list[int]]:
        """A rank's micro-batches of a step, in the order in which it computes them."""
        chunks = self.batch(step).reshape(-1, self.micro_batch_size)
        return [chunk.tolist() for chunk in chunks[rank::num_ranks]]


class MicroBatchSampler:
    """A rank's micro-batches from a step on, as ``torch.utils.data.DataLoader`` takes them for ``batch_sampler``.

    Args:
        order: All batches.
        first_step: Where to begin.
        last_step: Where to stop, exclusive.
        rank: This process.
        num_ranks: How many there are.

    Raises:
        ValueError: A step's micro-batches cannot be shared evenly.
    """

    def __init__(self, order: BatchOrder, first_step: int, last_step: int, rank: int = 0, num_ranks: int = 1) -> None:
        if order.num_micro_batches % num_ranks:
            raise ValueError(
                f"expected `optimization.batch_size` to be a multiple of micro_batch_size x processes, got "
                f"{order.batch_size}, {order.micro_batch_size} and {num_ranks} processes."
            )
        self.order, self.steps = order, range(first_step, last_step)
        self.rank, self.num_ranks = rank, num_ranks

    def __len__(self) -> int:
        return len(self.steps) * self.order.num_micro_batches // self.num_ranks

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            yield from self.order.micro_batches(step, self.rank, self.num_ranks)
