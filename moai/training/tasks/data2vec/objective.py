"""data2vec's objective: a student that sees a part, a teacher that sees all and follows the student slowly."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from .encoders import LayerResult, TokenEncoder
from .losses import Normalization, average_layers, regression_loss, variance_penalty

__all__ = ["Data2VecObjective", "Data2VecStudent", "follow"]


class Data2VecStudent(nn.Module):
    """An encoder with a regression head.

    Args:
        encoder: The encoder.
        head_layers: 1 = a linear head, as for images; 2 = an MLP of twice the width, as for texts.

    Attributes:
        encoder: As given.
        head: ``(..., C) -> (..., C)``.
    """

    def __init__(self, encoder: TokenEncoder, head_layers: int = 1) -> None:
        super().__init__()
        width, inner = encoder.width, 2 * encoder.width
        self.encoder = encoder
        self.head = (
            nn.Linear(width, width)
            if head_layers == 1
            else nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
        )

    def forward(self, inputs: Any, mask: torch.Tensor) -> torch.Tensor:
        """Predictions ``(M, C)`` for the tokens that are not seen, row by row."""
        return self.head(self.encoder(inputs, mask)[mask])


class Data2VecObjective(nn.Module):
    """Student, teacher and loss. A forward pass changes nothing; :meth:`advance` moves the teacher.

    Args:
        student: What is trained.
        target_layers: Places of the teacher's layers that are averaged.
        layer_result: What of them.
        norm_of_layers: See :func:`.losses.average_layers`.
        norm_of_mean: Likewise.
        beta: See :func:`.losses.regression_loss`.
        sums_channels: Channels of a token are summed up, as for texts; else averaged, as for images.
        loss_scale: Factor of the loss; 0 = one over the root of the width.
        variance_weight: Weight of :func:`.losses.variance_penalty`.
        variance_margin: Its margin.
        copied: Beginnings of names of the encoder's model that the teacher takes over as they are instead of following.

    Attributes:
        student: As given.
        teacher: The encoder's average over time, in evaluation mode.
    """

    def __init__(
        self,
        student: Data2VecStudent,
        target_layers: tuple[int, ...],
        layer_result: LayerResult = "end",
        norm_of_layers: Normalization = "layer",
        norm_of_mean: Normalization = "layer",
        beta: float = 2.0,
        sums_channels: bool = False,
        loss_scale: float = 1.0,
        variance_weight: float = 0.0,
        variance_margin: float = 0.5,
        copied: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.student, self.target_layers, self.layer_result = student, target_layers, layer_result
        self.norm_of_layers, self.norm_of_mean = norm_of_layers, norm_of_mean
        self.beta, self.sums_channels, self.loss_scale = beta, sums_channels, loss_scale
        self.variance_weight, self.variance_margin, self.copied = variance_weight, variance_margin, copied
        self.teacher = deepcopy(student.encoder).requires_grad_(False)
        self.teacher.eval()

    def train(self, mode: bool = True) -> Data2VecObjective:
        """Switch the student; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def targets(self, inputs: Any) -> torch.Tensor:
        """What the teacher says, ``(B, T, C)``."""
        results = self.teacher.layer_results(inputs, self.layer_result)
        return average_layers([results[i] for i in self.target_layers], self.norm_of_layers, self.norm_of_mean)

    def loss_of(self, predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Loss summed over M tokens; 0 for none.

        Args:
            predictions: ``(M, C)``.
            targets: ``(M, C)``.
        """
        losses = regression_loss(predictions, targets, self.beta)
        total = losses.sum() if self.sums_channels else losses.mean(dim=-1).sum()
        if self.variance_weight:
            penalty = variance_penalty(predictions, self.variance_margin)
            total = total + self.variance_weight * penalty * len(predictions)
        return total * (self.loss_scale if self.loss_scale > 0 else predictions.shape[-1] ** -0.5)

    def forward(self, inputs: Any, mask: torch.Tensor) -> torch.Tensor:
        """Loss summed over the tokens that the student does not see.

        Args:
            inputs: Pixels ``(B, 3, H, W)`` or ids ``(B, T)``.
            mask: ``(B, T)`` bool with M true.
        """
        return self.loss_of(self.student(inputs, mask), self.targets(inputs)[mask])

    def advance(self, decay: float) -> None:
        """Move the teacher a step towards the student.

        Args:
            decay: Share that it keeps of itself.
        """
        follow(self.teacher.model, self.student.encoder.model, decay, self.copied)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, decay: float, copied: tuple[str, ...] = ()) -> None:
    """Average parameters over time: ``decay`` of the teacher, the rest of the student.

    Buffers are left alone. The official code for images averages those that hold integers too, and its rounding moves
    entries of the table of relative positions.

    Args:
        teacher: Is changed.
        student: Has the same parameters.
        decay: Share that the teacher keeps.
        copied: Beginnings of names of parameters that the teacher takes over as they are.
    """
    online = dict(student.named_parameters())
    for name, value in teacher.named_parameters():
        if name.startswith(copied):
            value.copy_(online[name])
        else:
            value.mul_(decay).add_(online[name], alpha=1 - decay)
