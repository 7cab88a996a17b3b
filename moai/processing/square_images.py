"""Images resized to a square, with CLIP's mean and standard deviation."""

from __future__ import annotations

from typing import Any

from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

__all__ = ["SquareImageProcessor"]


class SquareImageProcessor(CLIPImageProcessorPil):
    """CLIP's preprocessing on Pillow without cropping: to a square, bicubic, the aspect ratio not kept.

    Args:
        size: {"height": H, "width": W} of ``pixel_values``.
        **kwargs: Any other setting of ``CLIPImageProcessorPil`` (``image_mean``, ``image_std``, ``resample``, ...).
    """

    size = {"height": 224, "width": 224}
    resample = Image.Resampling.BICUBIC
    default_to_square = True
    do_center_crop = False
    crop_size = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
