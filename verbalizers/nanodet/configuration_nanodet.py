"""Configuration of NanoDet (https://github.com/RangiLyu/nanodet, variant nanodet-g)."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from verbalizers.core.vocabularies import COCO_PANOPTIC_NAMES

__all__ = ["NanoDetConfig"]

_NUM_COCO_THINGS = 80


@strict
class NanoDetConfig(PreTrainedConfig):
    """Sizes of a NanoDet with a cross-stage-partial backbone.

    Args:
        image_size: side of the square that images are fitted into, in pixels.
        stem_channels: channels behind the first convolution.
        num_blocks: residual blocks of each stage. A stage doubles the channels; the first keeps the resolution of the
            stem (1/4), each later one halves it. The last three feed the detection head.
        hidden_size: channels of the feature pyramid and the head.
        num_bins: a side's distance from a cell's centre is the mean of a distribution over 0, 1, ... `num_bins` - 1
            strides (arXiv 2006.04388).
        pixel_mean: of blue, green and red, on 0..255.
        pixel_std: likewise.
        id2label: the C classes. None = COCO's 80 things.
    """

    model_type = "nanodet"

    image_size: int = 416
    stem_channels: int = 32
    num_blocks: list[int] | tuple[int, ...] = (1, 2, 2, 3)
    hidden_size: int = 128
    num_bins: int = 11
    pixel_mean: list[float] | tuple[float, ...] = (103.53, 116.28, 123.675)
    pixel_std: list[float] | tuple[float, ...] = (57.375, 57.12, 58.395)

    def __post_init__(self, **kwargs):
        if self.id2label is None and "num_labels" not in kwargs:
            self.id2label = dict(enumerate(COCO_PANOPTIC_NAMES[:_NUM_COCO_THINGS]))
            self.label2id = {name: index for index, name in self.id2label.items()}
        super().__post_init__(**kwargs)
        if len(self.num_blocks) < 3 or self.image_size % 32:
            raise ValueError(
                "`num_blocks` must name three stages or more and `image_size` be divisible by 32, got "
                f"{list(self.num_blocks)} and {self.image_size}."
            )

    @property
    def strides(self) -> tuple[int, int, int]:
        """Pixels per cell of the three feature maps."""
        first = 4 * 2 ** (len(self.num_blocks) - 3)
        return first, 2 * first, 4 * first
