"""Convolutional stems: an expert's map to the width of the vision encoder; instance embedding."""

from __future__ import annotations

import random

import torch
from torch import nn

__all__ = ["InstanceEmbedding", "build_expert_stem"]

# State-dict names are the places in nn.Sequential: 0 resize; 1, 4, 7, 10 convolutions, a norm behind each; 13 the last.
_DENSE_STRIDES, _LABEL_STRIDES = (2, 2, 2, 2), (2, 2, 1, 1)


def build_expert_stem(num_channels: int, hidden_size: int, patch_size: int, is_label: bool) -> nn.Sequential:
    """``(B, C, H, W) -> (B, D, h, w)`` with a 16th of 16 / patch_size times the map's side.

    A map of labels is made small first: a fourth of it is kept, as neighbours mostly carry one label.

    Args:
        num_channels: C.
        hidden_size: D.
        patch_size: Of the vision encoder, so that all grids match.
        is_label: The map holds features of labels.
    """
    strides = _LABEL_STRIDES if is_label else _DENSE_STRIDES
    widths = [num_channels, hidden_size // 8, hidden_size // 4, hidden_size // 2, hidden_size]
    layers: list[nn.Module] = [nn.UpsamplingBilinear2d(scale_factor=(4 if is_label else 16) / patch_size)]
    for width, next_width, stride in zip(widths, widths[1:], strides, strict=False):
        layers += [
            nn.Conv2d(width, next_width, kernel_size=3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(next_width),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.Conv2d(hidden_size, hidden_size, kernel_size=1, bias=False))


class InstanceEmbedding(nn.Module):
    """Tells instances of a class apart: a row of a table is added where an instance is.

    Which row does not matter, only that neighbours' differ. In training one is drawn for each distinct number of the
    WHOLE batch, background included, with Python's ``random``: numbers of two images share a row, and two numbers may
    draw the same. In evaluation an instance's number is its row, so that an answer does not depend on chance or on the
    images beside it; ``is_drawing`` draws there too, as the original does.

    Args:
        num_rows: Rows.
        hidden_size: Width D.
        is_drawing: Draw in evaluation too.
    """

    def __init__(self, num_rows: int, hidden_size: int, is_drawing: bool) -> None:
        super().__init__()
        self.is_drawing = is_drawing
        self.weight = nn.Parameter(torch.randn(num_rows, hidden_size) * hidden_size**-0.5)

    def forward(self, features: torch.Tensor, instance_map: torch.Tensor) -> torch.Tensor:
        """Add rows.

        Args:
            features: ``(B, D, h, w)``.
            instance_map: ``(B, 1, H, W)`` instance numbers, 255 = background.

        Returns:
            ``(B, D, h, w)``.
        """
        size = features.shape[-2:]
        numbers = nn.functional.interpolate(instance_map.float(), size=size, mode="nearest")[:, 0].long()  # (B, h, w)
        if self.training or self.is_drawing:
            values = instance_map.unique()  # ascending; one that the small map lost draws a number too
            drawn = [random.randint(0, len(self.weight) - 1) for _ in values]
            places = torch.searchsorted(values.long(), numbers.contiguous())
            rows = torch.tensor(drawn, device=numbers.device)[places]
        else:
            rows = numbers % len(self.weight)  # background, 255, is the last of 128
        return features + self.weight[rows].permute(0, 3, 1, 2)
