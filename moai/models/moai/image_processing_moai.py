"""Pixels for the vision tower: resize to a square, CLIP's mean and standard deviation.

The released evaluation resizes with Pillow's bilinear filter straight to 490x490, the aspect ratio not kept
(its dataset mappers: detectron2 ``T.Resize``); so does this class. (The release's demo.py resizes without
antialiasing instead; large images alias there, so that is not reproduced.) transformers' CLIP image processor does
the work in its Pillow form: the torchvision form differs by up to 0.03 after a resize and torchvision stays optional.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ...processing.pixel_values import compute_pixel_values
from ...processing.square_images import SquareImageProcessor
from .remote_code import InstalledCode


class MoAIImageProcessor(InstalledCode, SquareImageProcessor):
    """CLIP preprocessing on Pillow without cropping.

    Args:
        size: {"height": H, "width": W} of `pixel_values`; 490x490 for MoAI-7B.
        **kwargs: Any other setting of `CLIPImageProcessorPil` (`image_mean`, `image_std`, `resample`, ...).
    """

    size = {"height": 490, "width": 490}
    resample = Image.Resampling.BILINEAR


def compute_map_pixel_values(
    image_processor: Any, maps: Sequence[Image.Image], scale: float = 1.0, side: int | None = None
) -> np.ndarray:
    """Normalise panoptic colour maps like images.

    They are resized to the nearest pixel: a blend of two segments' colours would be the colour of a third.

    Args:
        image_processor: The images' own processor.
        maps: B RGB maps of any size.
        scale: Factor on the 0..255 colours. 1 is right; 1/255 reproduces the release, which stacks its 0..1 map as
            float16 and then normalises it as if it were 0..255 (arch_moai.py, eval_process): almost black.
        side: Height and width in pixels; None = the images'.

    Returns:
        (B, 3, H, W) float32.
    """
    settings: dict[str, Any] = {"resample": Image.Resampling.NEAREST}
    if side is not None:
        settings["size"] = {"height": side, "width": side}
    if scale == 1.0:
        return compute_pixel_values(image_processor, maps, **settings)
    raw = compute_pixel_values(image_processor, maps, do_rescale=False, do_normalize=False, **settings)
    values = (raw.astype(np.float64) * scale).astype(np.float16).astype(np.float32)
    if image_processor.do_rescale:
        values = values * np.float32(image_processor.rescale_factor)
    if image_processor.do_normalize:
        mean, std = (
            np.asarray(constant, dtype=np.float32).reshape(-1, 1, 1)
            for constant in (image_processor.image_mean, image_processor.image_std)
        )
        values = (values - mean) / std
    return values.astype(np.float32)
