"""Pixels for the vision tower, as CLIP was trained with them."""

from __future__ import annotations

from typing import Any

from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

__all__ = ["FlamingoImageProcessor"]


class FlamingoImageProcessor(CLIPImageProcessorPil):
    """CLIP's preprocessing on Pillow: the shorter side to 224 pixels, bicubic, then the middle square.

    Args:
        **kwargs: Settings of ``CLIPImageProcessorPil`` (``size``, ``crop_size``, ``image_mean``, ...).
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
