"""Validation loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from .task import Task

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Validator"]


class Validator:
    """Measures the mean loss of a task's validation batches.

    Args:
        accelerator: Joins the processes, which share the batches.
        task: The trained model.
        wrapped: It as accelerate prepared it.
    """

    def __init__(self, accelerator: Accelerator, task: Task, wrapped: nn.Module) -> None:
        self.accelerator, self.task, self.wrapped = accelerator, task, wrapped
        self.num_batches = task.num_validation_batches

    @torch.no_grad()
    def measure(self) -> float:
        """Mean loss per target, equal on all processes."""
        from accelerate.utils import send_to_device

        rank, num_ranks = self.accelerator.process_index, self.accelerator.num_processes
        sums = torch.zeros(2, dtype=torch.float64)
        self.task.eval()
        try:
            # Wrapped models (DDP, FSDP) communicate in every forward pass, so all ranks make equally many; a rank
            # without samples of its own repeats the last batch and leaves it out of the counts.
            for turn in range(-(-self.num_batches // num_ranks)):
                place = turn * num_ranks + rank
                batch = self.task.validation_batch(min(place, self.num_batches - 1))
                loss, _ = self.wrapped(send_to_device(batch.inputs, self.accelerator.device))
                if place < self.num_batches:
                    sums += torch.tensor([loss.item(), batch.num_targets], dtype=torch.float64)
        finally:
            self.task.set_training_mode()
        loss, num_targets = self.accelerator.reduce(sums.to(self.accelerator.device), reduction="sum").tolist()
        return loss / max(num_targets, 1.0)
