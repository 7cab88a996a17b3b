"""EfficientNet-lite: a classifier without squeeze and excitation (arXiv 1905.11946, https://github.com/tensorflow/tpu).

    image -> stem -> inverted bottlenecks (arXiv 1801.04381) -> 1x1 convolution -> mean over places -> classes

Batch normalisation is folded into the convolutions: the model runs, it is not trained here. Shapes: B images, C
classes, H image size, D channels and h x w places of the last feature map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from verbalizers.efficientnet.configuration_efficientnet_lite import EfficientNetLiteConfig

__all__ = ["EfficientNetLiteForImageClassification", "EfficientNetLiteOutput"]


@dataclass
class EfficientNetLiteOutput(ModelOutput):
    """Output of EfficientNet-lite.

    Attributes:
        logits: `(B, C)`.
        features: `(B, D, h, w)`, of which the head reads the mean: its weights applied to each place are a class's
            activation map (arXiv 1512.04150).
    """

    logits: torch.Tensor | None = None
    features: torch.Tensor | None = None


class PaddedConvolution(nn.Conv2d):
    """A convolution padded as TensorFlow's "same": what cannot be shared equally comes to the right and below."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        height, width = (max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in features.shape[-2:])
        padding = (width // 2, width - width // 2, height // 2, height - height // 2)
        return super().forward(F.pad(features, padding))


class InvertedBottleneck(nn.Module):
    """Wider by a 1x1 convolution, a convolution per channel, and narrow again: `(B, c, h, w)` -> `(B, d, h', w')`."""

    def __init__(self, num_in: int, num_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = num_in * expansion
        self.expand = nn.Conv2d(num_in, width, 1) if expansion > 1 else None
        self.depthwise = PaddedConvolution(width, width, kernel, stride, groups=width)
        self.project = nn.Conv2d(width, num_out, 1)
        self.is_residual = stride == 1 and num_in == num_out

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        inner = features if self.expand is None else F.relu6(self.expand(features))
        found = self.project(F.relu6(self.depthwise(inner)))
        return features + found if self.is_residual else found


class EfficientNetLiteForImageClassification(PreTrainedModel):
    """EfficientNet-lite with its classes.

    Args:
        config: its sizes.
    """

    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.stem = PaddedConvolution(3, config.stem_channels, 3, 2)
        blocks, width = [], config.stem_channels
        for repeats, kernel, stride, expansion, num_out in config.stages:
            for number in range(repeats):
                blocks.append(InvertedBottleneck(width, num_out, kernel, stride if number == 0 else 1, expansion))
                width = num_out
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Conv2d(width, config.hidden_size, 1)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor) -> EfficientNetLiteOutput:
        """Classify.

        Args:
            pixel_values: `(B, 3, H, H)`, red, green, blue, normalised by `pixel_mean` and `pixel_std`.
        """
        features = F.relu6(self.stem(pixel_values))
        for block in self.blocks:
            features = block(features)
        features = F.relu6(self.head(features))
        return EfficientNetLiteOutput(self.classifier(features.mean(dim=(2, 3))), features)
