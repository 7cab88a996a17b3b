"""Configuration of EfficientNet-lite (arXiv 1905.11946; https://github.com/tensorflow/tpu, efficientnet/lite)."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

__all__ = ["EfficientNetLiteConfig"]


@strict
class EfficientNetLiteConfig(PreTrainedConfig):
    """Sizes of an EfficientNet without squeeze and excitation.

    Args:
        image_size: side of the square that images are resized to, in pixels.
        stem_channels: channels behind the first convolution, which halves the resolution.
        stages: of each stage: blocks, kernel side, stride of its first block, factor by which a block widens, channels.
        hidden_size: channels of the last feature map.
        pixel_mean: of red, green and blue, on 0..255.
        pixel_std: likewise.
        id2label: the C classes; several may have one name, which then has the sum of their probabilities. "" = a class
            that is not named.
    """

    model_type = "efficientnet_lite"

    image_size: int = 224
    stem_channels: int = 32
    stages: list[list[int]] | tuple[tuple[int, ...], ...] = (
        (1, 3, 1, 1, 16),
        (2, 3, 2, 6, 24),
        (2, 5, 2, 6, 40),
        (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    )
    hidden_size: int = 1280
    pixel_mean: float = 127.0
    pixel_std: float = 128.0

    def __post_init__(self, **kwargs):
        if self.id2label is None and "num_labels" not in kwargs:
            kwargs["num_labels"] = 1000
        super().__post_init__(**kwargs)
        if not self.stages or any(len(stage) != 5 for stage in self.stages):
            raise ValueError(f"`stages` must hold five numbers each, got {list(self.stages)}. Name all five.")
