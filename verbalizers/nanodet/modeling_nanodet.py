"""NanoDet: one-stage, anchor-free detection (https://github.com/RangiLyu/nanodet, variant nanodet-g).

    image -> stem -> cross-stage-partial stages -> path-aggregation pyramid -> per level: class scores and, for each of
    a box's four sides, a distribution over its distance from the cell's centre (generalized focal loss, arXiv
    2006.04388)

Batch normalisation is folded into the convolutions: the model runs, it is not trained here. Shapes: B images, P cells
of all three levels, finest first and row by row, C classes, R bins, H image size, h and w of one level.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from verbalizers.nanodet.configuration_nanodet import NanoDetConfig

__all__ = ["NanoDetForObjectDetection", "NanoDetOutput"]

_SLOPE = 0.1


@dataclass
class NanoDetOutput(ModelOutput):
    """Output of NanoDet.

    Attributes:
        logits: `(B, P, C)`, class scores before the sigmoid.
        boxes: `(B, P, 4)`, x0, y0, x1, y1 in pixels of the square input, clipped to it.
    """

    logits: torch.Tensor | None = None
    boxes: torch.Tensor | None = None


class ConvolutionLayer(nn.Module):
    """A 3x3 convolution and a leaky rectifier."""

    def __init__(self, num_in: int, num_out: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(num_in, num_out, 3, stride, padding=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(self.convolution(features), _SLOPE)


class ResidualBlock(nn.Module):
    """Two convolutions to half the channels, the second behind the first, side by side."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.first = ConvolutionLayer(num_channels, num_channels // 2)
        self.second = ConvolutionLayer(num_channels // 2, num_channels // 2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        first = self.first(features)
        return torch.cat([self.second(first), first], dim=1)


class Stage(nn.Module):
    """A cross-stage-partial stage (arXiv 1911.11929): `(B, c, h, w)` -> `(B, 2c, h / stride, w / stride)`."""

    def __init__(self, num_channels: int, num_blocks: int, stride: int) -> None:
        super().__init__()
        self.entrance = ConvolutionLayer(num_channels, num_channels, stride)
        self.blocks = nn.Sequential(*(ResidualBlock(num_channels) for _ in range(num_blocks)))
        self.exit = ConvolutionLayer(num_channels, num_channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = self.entrance(features)
        return torch.cat([self.exit(self.blocks(features)), features], dim=1)


class FeaturePyramid(nn.Module):
    """Path aggregation (arXiv 1803.01534) by resizing and adding alone: three levels -> three of one width."""

    def __init__(self, num_channels: list[int], hidden_size: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(number, hidden_size, 1) for number in num_channels)

    def forward(self, levels: list[torch.Tensor]) -> list[torch.Tensor]:
        levels = [lateral(level) for lateral, level in zip(self.laterals, levels, strict=True)]
        for fine in reversed(range(len(levels) - 1)):  # from coarse to fine, and back
            levels[fine] = levels[fine] + _resize_as(levels[fine + 1], levels[fine])
        for coarse in range(1, len(levels)):
            levels[coarse] = levels[coarse] + _resize_as(levels[coarse - 1], levels[coarse])
        return levels


def _resize_as(features: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return F.interpolate(features, size=other.shape[-2:], mode="bilinear", align_corners=False)


class DetectionHead(nn.Module):
    """Scores and distances of one level's cells: `(B, D, h, w)` -> `(B, h * w, C + 4R)`."""

    def __init__(self, hidden_size: int, num_outputs: int) -> None:
        super().__init__()
        self.layer = ConvolutionLayer(hidden_size, hidden_size)
        self.predictor = nn.Conv2d(hidden_size, num_outputs, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.predictor(self.layer(features)).flatten(2).transpose(1, 2)


class NanoDetForObjectDetection(PreTrainedModel):
    """NanoDet with its detection head.

    Args:
        config: its sizes.
    """

    config_class = NanoDetConfig
    main_input_name = "pixel_values"

    def __init__(self, config: NanoDetConfig) -> None:
        super().__init__(config)
        widths = [config.stem_channels * 2**index for index in range(len(config.num_blocks) + 1)]
        self.stem = ConvolutionLayer(3, config.stem_channels, stride=2)
        self.stages = nn.ModuleList(
            Stage(width, number, stride=1 if index == 0 else 2)
            for index, (width, number) in enumerate(zip(widths, config.num_blocks, strict=False))
        )
        self.pyramid = FeaturePyramid(widths[-3:], config.hidden_size)
        num_outputs = config.num_labels + 4 * config.num_bins
        self.heads = nn.ModuleList(DetectionHead(config.hidden_size, num_outputs) for _ in range(3))
        self.post_init()

    def forward(self, pixel_values: torch.Tensor) -> NanoDetOutput:
        """Detect.

        Args:
            pixel_values: `(B, 3, H, H)`, blue, green, red, normalised by `pixel_mean` and `pixel_std`.
        """
        features = F.max_pool2d(self.stem(pixel_values), 3, stride=2, padding=1)  # (B, 32, H / 4, H / 4)
        levels = []
        for stage in self.stages:
            features = stage(features)
            levels.append(features)
        levels = self.pyramid(levels[-3:])
        found = torch.cat([head(level) for head, level in zip(self.heads, levels, strict=True)], dim=1)
        logits, distributions = found.split([self.config.num_labels, 4 * self.config.num_bins], dim=-1)
        centres, strides = _place_cells([level.shape[-2:] for level in levels], self.config.strides)
        centres, strides = centres.to(found.device), strides.to(found.device)
        bins = torch.arange(self.config.num_bins, device=found.device, dtype=torch.float32)
        distributions = distributions.float().unflatten(-1, (4, self.config.num_bins)).softmax(dim=-1)
        distances = (distributions @ bins) * strides  # (B, P, 4): left, top, right, bottom
        boxes = torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], dim=-1)
        return NanoDetOutput(logits, boxes.clamp(0, self.config.image_size))


def _place_cells(sizes_hw: list[torch.Size], strides: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres `(P, 2)`, x and y in pixels, and stride `(P, 1)` of all cells."""
    centres, sizes = [], []
    for (height, width), stride in zip(sizes_hw, strides, strict=True):
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centres.append((torch.stack([x, y], dim=-1).flatten(0, 1) + 0.5) * stride)
        sizes.append(torch.full((height * width, 1), float(stride)))
    return torch.cat(centres), torch.cat(sizes)
