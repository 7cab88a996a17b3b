"""Targets and loss of data2vec (arXiv 2202.03555), and the schedule of its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch.nn import functional as F

__all__ = ["Normalization", "average_layers", "regression_loss", "teacher_decay", "variance_penalty"]

#: Without learned weights: ``layer`` = over a token's channels, ``instance`` = over a sample's tokens.
Normalization = Literal["layer", "instance", "none"]


def _normalize(values: torch.Tensor, kind: Normalization) -> torch.Tensor:
    """``(B, T, C)`` -> likewise."""
    if kind == "layer":
        return F.layer_norm(values, values.shape[-1:])
    if kind == "instance":
        return F.instance_norm(values.transpose(1, 2)).transpose(1, 2)
    return values


def average_layers(
    layers: Sequence[torch.Tensor], of_layers: Normalization = "layer", of_mean: Normalization = "none"
) -> torch.Tensor:
    """Targets: the mean over the teacher's layers, each normalised, perhaps normalised again.

    Args:
        layers: ``(B, T, C)`` each.
        of_layers: Normalisation of each.
        of_mean: Normalisation of their mean.

    Returns:
        ``(B, T, C)`` float32.
    """
    total = sum(_normalize(layer.float(), of_layers) for layer in layers)
    return _normalize(total / len(layers), of_mean)


def regression_loss(predictions: torch.Tensor, targets: torch.Tensor, beta: float) -> torch.Tensor:
    """Smooth L1 of every number; with ``beta`` 0 the squared error.

    Args:
        predictions: Any shape.
        targets: The same.
        beta: Where the parabola becomes a line.
    """
    predictions = predictions.float()
    if beta == 0:
        return F.mse_loss(predictions, targets, reduction="none")
    return F.smooth_l1_loss(predictions, targets, beta=beta, reduction="none")


def variance_penalty(predictions: torch.Tensor, margin: float) -> torch.Tensor:
    """What predictions cost whose channels vary less over tokens than a margin: a guard against collapse.

    Args:
        predictions: ``(M, C)``.
        margin: Standard deviation that costs nothing.
    """
    return F.relu(margin - (predictions.float().var(dim=0) + 1e-6).sqrt()).mean()


def teacher_decay(step: int, start: float, end: float, num_steps: int) -> float:
    """Share that the teacher keeps of itself: linear from ``start`` to ``end`` in ``num_steps``, then constant.

    Args:
        step: Steps done.
        start: At step 0.
        end: From step ``num_steps`` on.
        num_steps: 0 = ``end`` at once.
    """
    return end if step >= num_steps else end - (end - start) * (1 - step / num_steps)
