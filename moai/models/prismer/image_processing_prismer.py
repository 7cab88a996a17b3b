"""Pixels for the vision tower: resized to a square, the aspect ratio not kept, CLIP's mean and standard deviation."""

from __future__ import annotations

from typing import Any

from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

__all__ = ["PrismerImageProcessor"]


class PrismerImageProcessor(CLIPImageProcessorPil):
    """CLIP's preprocessing on Pillow, bicubic, without cropping.

    Args:
        size: {"height": H, "width": W} of `pixel_values`; a multiple of the patch size.
        **kwargs: Other settings of ``CLIPImageProcessorPil`` (``image_mean``, ``resample``, ...).
    """

    size = {"height": 224, "width": 224}
    resample = Image.Resampling.BICUBIC
    default_to_square = True
    do_center_crop = False
    crop_size = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
