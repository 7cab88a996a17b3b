"""Loss on samples that nothing is learned from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from .train_settings import TrainSettings
from .train_step import count_targets, target_window
from .trained_parts import set_training_mode

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Validator"]


class Validator:
    """Measures the mean loss per answer token over a whole dataset, with the stage's own way of choosing experts.

    Args:
        settings: Of the run; its micro-batch size, routing and seed hold here too.
        accelerator: Joins the processes, which share the samples.
        model: What is trained.
        step_module: It with its loss, as accelerate prepared it.
        dataset: A map-style dataset.
        collator: What makes a batch of its samples.
    """

    def __init__(
        self,
        settings: TrainSettings,
        accelerator: Accelerator,
        model: nn.Module,
        step_module: nn.Module,
        dataset: Any,
        collator: Callable[[list[Any]], Mapping[str, torch.Tensor]],
    ) -> None:
        self.settings, self.accelerator = settings, accelerator
        self.model, self.step_module = model, step_module
        size, (rank, num_ranks) = settings.optimization.micro_batch_size, self._ranks()
        chunks = [list(range(start, min(start + size, len(dataset)))) for start in range(0, len(dataset), size)]
        # Wrapped models talk to each other in every pass: ranks make equally many, the last ones for nothing.
        rounds = -(-len(chunks) // num_ranks)
        self._places = [turn * num_ranks + rank for turn in range(rounds)]
        self._num_chunks = len(chunks)
        own = [chunks[min(place, len(chunks) - 1)] for place in self._places]
        self._batches = DataLoader(dataset, batch_sampler=own, collate_fn=collator, generator=torch.Generator())

    def _ranks(self) -> tuple[int, int]:
        return self.accelerator.process_index, self.accelerator.num_processes

    @torch.no_grad()
    def measure(self) -> float:
        """Mean cross entropy per answer token, in nats, equal on all processes."""
        settings, device = self.settings, self.accelerator.device
        routing = {"mode": settings.routing_mode, "top_k": settings.top_k, "seed": settings.seed}
        sums = torch.zeros(2, dtype=torch.float64)
        self.model.eval()
        try:
            for place, batch in zip(self._places, self._batches, strict=True):
                inputs = {name: value.to(device) for name, value in batch.items()}
                # One drawn expert would be one opinion: every batch has its own, the same at every measurement.
                drawn = routing | {"seed": settings.seed + place} if "random" in settings.routing_mode else routing
                loss, _ = self.step_module(inputs, drawn, target_window(batch["labels"]))
                if place < self._num_chunks:
                    sums += torch.tensor([loss.item(), count_targets(batch["labels"])], dtype=torch.float64)
        finally:
            set_training_mode(self.model)
        loss, num_targets = self.accelerator.reduce(sums.to(device), reduction="sum").tolist()
        return loss / max(num_targets, 1.0)
