"""Muon for matrices, AdamW for the rest: what makes a small transformer learn from few steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

__all__ = ["MuonAdamW", "orthogonalized"]

# Coefficients of the quintic iteration (https://kellerjordan.github.io/posts/muon/): steep at zero, near one elsewhere.
_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalized(matrix: torch.Tensor, num_iterations: int = 5) -> torch.Tensor:
    """A matrix with (almost) the same singular vectors and singular values near 1.

    Args:
        matrix: float (m, n).
        num_iterations: Newton-Schulz steps.
    """
    a, b, c = _QUINTIC
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(num_iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x


class MuonAdamW(torch.optim.Optimizer):
    """Groups with ``use_muon`` are matrices updated by orthogonalised momentum, the others by AdamW.

    Muon's updates are scaled to the size of AdamW's (arXiv 2502.16982, section 2.2), so that both share one rate.

    Args:
        groups: Parameter groups with ``lr``, ``weight_decay`` and ``use_muon``.
        momentum: Of Muon, with Nesterov's look-ahead.
        betas: Of AdamW.
        eps: Of AdamW.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(groups, {"use_muon": False, "lr": 1e-3, "weight_decay": 0.0})
        self.momentum, self.betas, self.eps = momentum, betas, eps

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Update every parameter that has a gradient.

        Args:
            closure: Not used; torch's signature.
        """
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"] = torch.zeros_like(parameter)
                    if not group["use_muon"]:
                        state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                update = self._muon(parameter, state) if group["use_muon"] else self._adam(parameter, state)
                parameter.add_(update, alpha=-group["lr"])

    def _muon(self, parameter: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
        average = state["exp_avg"].lerp_(parameter.grad, 1 - self.momentum)
        update = orthogonalized(parameter.grad.lerp(average, self.momentum))
        return update * (0.2 * max(parameter.shape) ** 0.5)

    def _adam(self, parameter: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
        first, second = self.betas
        step = float(state["step"])
        average = state["exp_avg"].lerp_(parameter.grad, 1 - first)
        square = state["exp_avg_sq"].mul_(second).addcmul_(parameter.grad, parameter.grad, value=1 - second)
        scale = (square / (1 - second**step)).sqrt_().add_(self.eps)
        return average / (1 - first**step) / scale
