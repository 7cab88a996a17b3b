"""The mean of the weights of a run's last steps, which is often better than the last of them.

Source: Stochastic weight averaging, arXiv 1803.05407.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from .checkpoints import running_statistics

__all__ = ["WeightMean"]


class WeightMean:
    """The running mean of what is trained, in float32.

    Args:
        model: What is trained, spread over ranks or not.
        num_steps: Optimizer steps of the whole run.
        share: Share of them, the last ones, whose weights are averaged; 0 = none.

    Raises:
        ValueError: The model keeps running statistics, which belong to the last weights and not to their mean.
    """

    def __init__(self, model: nn.Module, num_steps: int, share: float) -> None:
        self.first = num_steps - round(share * num_steps)  # steps before the first that counts
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.parameters: Mapping[str, nn.Parameter] = trained if self.first < num_steps else {}
        if self.parameters and (found := running_statistics(model)):
            raise ValueError(
                f"expected a model without batch normalisation for `optimization.averaged_share`, got {min(found)!r}. "
                "Set it to 0."
            )
        self.means = {name: value.detach().float().clone() for name, value in self.parameters.items()}

    def state(self) -> dict[str, torch.Tensor]:
        """The tensors that a checkpoint holds, by name; a resumed run copies them back into these."""
        return {f"weight_mean.{name}": value for name, value in self.means.items()}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Take in the weights after a step.

        Args:
            step: Steps done, this one included.
        """
        weight = 1.0 / max(step - self.first, 1)  # until the first that counts: the weights themselves
        for name, value in self.parameters.items():
            self.means[name].lerp_(value.detach().float(), weight)

    def put(self) -> None:
        """Put the means in the place of the weights."""
        self._put(self.means)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the means are in the place of the weights."""
        own = {name: value.detach().clone() for name, value in self.parameters.items()}
        self._put(self.means)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])
