"""Pixels for TCL's image encoder: resize to a square, CLIP's mean and standard deviation.

Bicubic, without cropping, on Pillow: pixels must not depend on whether torchvision is installed.
"""

from __future__ import annotations

from typing import Any

from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

__all__ = ["TCLImageProcessor"]


class TCLImageProcessor(CLIPImageProcessorPil):
    """CLIP preprocessing on Pillow without cropping.

    Args:
        size: {"height": H, "width": W} of `pixel_values`.
        **kwargs: Other settings of ``CLIPImageProcessorPil`` (``image_mean``, ``resample``, ...).
    """

    size = {"height": 256, "width": 256}
    resample = Image.Resampling.BICUBIC
    default_to_square = True
    do_center_crop = False
    crop_size = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
