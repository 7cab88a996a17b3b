"""AdamW, or Muon for matrices and AdamW for the rest, with a learning rate for each part of a model."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from .train_settings import OptimizationSettings

__all__ = ["build_optimizers", "learning_rate_factor"]

_SMALLEST_MUON_SIDE = 16  # a matrix of few rows is rather a set of vectors


def build_optimizers(
    model: nn.Module,
    settings: OptimizationSettings,
    part_of: Callable[[str], str],
    decays: Callable[[str, nn.Parameter], bool],
) -> list[torch.optim.Optimizer]:
    """Optimizers over the trained parameters, one group per part and kind; ``peak`` is a group's highest rate.

    Args:
        model: The trained model.
        settings: Rates, decay, and which optimizer.
        part_of: Part that a parameter of some name belongs to; ``settings.learning_rates`` are rates of parts.
        decays: Whether a parameter of some name has weight decay.

    Returns:
        AdamW, and :class:`torch.optim.Muon` before it where it is asked for.
    """
    groups: dict[tuple[bool, str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_decaying = decays(name, parameter)
            is_matrix = is_decaying and parameter.dim() == 2 and min(parameter.shape) >= _SMALLEST_MUON_SIDE
            by_muon = settings.optimizer == "muon" and is_matrix
            groups.setdefault((by_muon, part_of(name), is_decaying), []).append(parameter)
    rows: dict[bool, list[dict]] = {}
    for (by_muon, part, is_decaying), parameters in groups.items():
        peak = settings.learning_rates.get(part, settings.learning_rate)
        decay = settings.weight_decay if is_decaying else 0.0
        group = {"params": parameters, "lr": peak, "peak": peak, "weight_decay": decay, "part": part}
        rows.setdefault(by_muon, []).append(group)
    optimizers: list[torch.optim.Optimizer] = []
    if True in rows:  # updates of AdamW's size (arXiv 2502.16982, section 2.2), so that both share one rate
        optimizers.append(torch.optim.Muon(rows[True], adjust_lr_fn="match_rms_adamw"))
    if False in rows:
        optimizers.append(torch.optim.AdamW(rows[False], betas=tuple(settings.betas), eps=settings.epsilon))
    return optimizers


def learning_rate_factor(step: int, num_steps: int, settings: OptimizationSettings) -> float:
    """Factor on the peak rate at a zero-based step: linear rise, then a cosine down to ``final_share``.

    Args:
        step: Steps done before this one.
        num_steps: Of the whole run.
        settings: ``warmup_share`` and ``final_share``.
    """
    warmup = math.ceil(settings.warmup_share * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, num_steps - warmup)
    return settings.final_share + (1 - settings.final_share) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
