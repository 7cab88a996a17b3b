"""Loading of batches: made by worker processes where there are cores to spare, in an order of the task's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from moai.data.collator import iterate_batches

from .processes import count_workers, ignore_helpers, ignore_interrupts

__all__ = ["load_batches"]


class _Yielded:
    """What a function yields, anew at every iteration, as ``DataLoader`` takes it for ``sampler``."""

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        return self.make()


def _unchanged(batch: Any) -> Any:
    """What a loader makes of a batch that is one already."""
    return batch


def load_batches(
    batches: Dataset[Any],
    keys: Callable[[], Iterator[Any]],
    num_workers: int | None,
    num_ranks: int,
    pin_memory: bool = False,
) -> Iterator[Any]:
    """Load batches one after the other. A process that makes them and ends is noticed at the next batch only.

    Args:
        batches: Whole batches by key, see :class:`moai.data.collator.CollatedBatches`.
        keys: Yields the keys in order.
        num_workers: ``num_workers`` of the recipe.
        num_ranks: Ranks of the run.
        pin_memory: Batches go to a GPU.

    Raises:
        Exception: A batch could not be made.
    """
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=_Yielded(keys),
        collate_fn=_unchanged,
        num_workers=count_workers(num_workers, num_ranks),
        pin_memory=pin_memory,
        worker_init_fn=ignore_interrupts,
        generator=torch.Generator(),  # the global one would advance by one draw
    )
    for batch in iterate_batches(loader):
        with ignore_helpers():  # else torch raises the end of one amid a step, whose weights are half changed then
            yield batch
