"""Protocol of training tasks: batches, the loss of each, and metrics for the log."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

__all__ = ["Batch", "Task"]


@dataclass(frozen=True)
class Batch:
    """A micro-batch.

    Attributes:
        inputs: What :meth:`Task.forward` takes. Tensors in mappings and sequences are moved to the device.
        num_targets: What the summed loss counts, such as answer tokens; a step divides by the sum over all its
            micro-batches. It stands here, and not in what `forward` returns, because it scales the loss before the
            backward pass: DeepSpeed updates the weights inside that pass.
        num_tokens: Tokens, padding excluded; 0 where there are none.
    """

    inputs: Any
    num_targets: float
    num_tokens: float = 0.0


class Task(nn.Module, ABC):
    """A model with its data and its loss.

    Distributed wrappers wrap the task as a whole and look at what `forward` returns to learn which parameters were
    used: the loss alone may have a gradient.

    Attributes:
        model: What is trained; its parameters' names are those in checkpoints.
        fixed_settings: Dotted names of settings that a resumed run may not change though runs of other tasks may, such
            as ``optimization.micro_batch_size`` where a sample's loss depends on the others of its micro-batch.
    """

    model: nn.Module
    fixed_settings: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def batches(self, first_step: int, last_step: int, rank: int, num_ranks: int) -> Iterator[Batch]:
        """A rank's micro-batches of some optimizer steps, in the order in which it computes them.

        Micro-batch ``i`` of a step belongs to rank ``i % num_ranks``. What is in it is a function of seed, step and
        ``i`` alone: so a resumed run sees what an unbroken one sees, on any number of ranks.

        Args:
            first_step: Where to begin.
            last_step: Where to stop, exclusive.
            rank: This process.
            num_ranks: How many there are.
        """

    @abstractmethod
    def forward(self, inputs: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute the loss of a micro-batch.

        Args:
            inputs: Of a :class:`Batch`.

        Returns:
            The loss summed over the batch's targets, a scalar; and counters, tensors without gradient that the trainer
            adds up over micro-batches, ranks and steps. Names and shapes are the same in every call.
        """

    def after_step(self, step: int) -> None:
        """Follow an optimizer step: move a teacher towards the model, fill a queue.

        All ranks call it, before the step is validated or saved, and must end it with equal :meth:`extra_state`.

        Args:
            step: Steps done, this one included.
        """

    def extra_state(self) -> dict[str, torch.Tensor]:
        """What training changes beside :attr:`model`, by name: a teacher's weights, a queue, its place.

        The tensors themselves, of any dtype: checkpoints hold them bit by bit, and a resumed run copies them back into
        these. Names and shapes are the same in every call. They change in :meth:`after_step` alone: a step that fails
        half way is made again from the state before it. What a forward pass finds is kept elsewhere until then.
        """
        return {}

    def part_of(self, name: str) -> str:
        """Part of the model that a parameter belongs to: parts may have learning rates of their own.

        Args:
            name: Of a parameter of :attr:`model`.
        """
        return ""

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether a parameter has weight decay: matrices have it.

        Vectors (norms, biases), embeddings and latents have none: pulling them to zero regularises nothing.

        Args:
            name: Of a parameter of :attr:`model`.
            parameter: That parameter.
        """
        return parameter.dim() > 1 and "embed" not in name and "latents" not in name

    def set_training_mode(self) -> None:
        """Switch to training mode, except for frozen modules."""
        self.train()

    def report(self, counters: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Metrics of a log line, beside loss and times.

        Args:
            counters: Sums of what :meth:`forward` returned, float64 on the CPU.

        Returns:
            JSON-able values; mappings may be nested.
        """
        return {}

    def identity(self) -> dict[str, Any]:
        """JSON-able values that a resumed run must share with the run it continues, beside the settings.

        Here what training does not change: the frozen weights, under ``start``. A task adds what tells its data, such
        as :func:`.run_identity.hash_samples`; a difference is told to users by the name of the value.
        """
        from .run_identity import hash_frozen

        return {"start": hash_frozen(self.model, self.part_of)}

    @property
    def num_validation_batches(self) -> int:
        """Micro-batches that the validation loss is measured on; 0 = it is not measured."""
        return 0

    def validation_batch(self, place: int) -> Batch:
        """A micro-batch for the validation loss; the same at every measurement.

        Args:
            place: Below :attr:`num_validation_batches`.
        """
        raise IndexError(place)
