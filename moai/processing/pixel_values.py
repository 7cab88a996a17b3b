"""Pixels by any Hugging Face image processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image


def compute_pixel_values(image_processor: Any, images: Sequence[Image.Image], **settings: Any) -> np.ndarray:
    """Run any Hugging Face image processor.

    Args:
        image_processor: The processor; its own settings apply.
        images: P RGB images of any size.
        **settings: Overrides for this call.

    Returns:
        (P, 3, H, W) float32.
    """
    planes = image_processor(list(images), **settings)["pixel_values"]
    return np.stack([np.asarray(plane, dtype=np.float32) for plane in planes])
