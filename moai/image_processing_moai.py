"""Pixels for the vision tower: resize to a square, CLIP's mean and standard deviation.

The released evaluation resizes with Pillow's bilinear filter straight to 490x490, the aspect ratio not kept
(its dataset mappers: detectron2 ``T.Resize``); so does this class. (The release's demo.py resizes without
antialiasing instead; large pictures alias there, so that is not reproduced.) transformers' CLIP image processor does
the work in its Pillow form: the torchvision form differs by up to 0.03 after a resize and torchvision stays optional.
"""

from __future__ import annotations

from typing import Any

from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil


class MoAIImageProcessor(CLIPImageProcessorPil):
    """CLIP preprocessing on Pillow without cropping.

    Args:
        size: {"height": H, "width": W} of `pixel_values`; 490x490 for MoAI-7B.
        **kwargs: Any other setting of `CLIPImageProcessorPil` (`image_mean`, `image_std`, `resample`, ...).
    """

    size = {"height": 490, "width": 490}
    resample = Image.Resampling.BILINEAR
    default_to_square = True
    do_center_crop = False
    crop_size = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
