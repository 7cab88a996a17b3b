"""Edges: how strong the step of colour is at every pixel. Classical, without weights; a map without words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from verbalizers.core.label_map import LabelMap
from verbalizers.core.registry import register_verbalizer
from verbalizers.core.validation import check_range
from verbalizers.core.verbalizer import Verbalizer

__all__ = ["GradientEdges"]


@register_verbalizer("edge", "gradient")
@dataclass(eq=False, kw_only=True)
class GradientEdges(Verbalizer):
    """Gradient of the image under a Gaussian, the strongest of the three colours.

    A map's value is the contrast of the step at a pixel: 1 = from black to white, 0 = none.

    Attributes:
        sigma: standard deviation of the Gaussian in pixels; lines are about as wide, finer texture vanishes.
        max_side: longest side of the map in pixels; larger images are looked at in this size.
    """

    sigma: float = 1.0
    max_side: int = 1024

    def __post_init__(self) -> None:
        check_range(self, "sigma", high=None, is_open=True)
        check_range(self, "max_side", low=1, high=None)

    def predict(self, images: Sequence[np.ndarray]) -> list[LabelMap]:
        """See `Verbalizer.predict`."""
        return [self._find_edges(image) for image in images]

    def _find_edges(self, image: np.ndarray) -> LabelMap:
        from scipy.ndimage import gaussian_gradient_magnitude

        height, width = image.shape[:2]
        if max(height, width) > self.max_side:
            scale = self.max_side / max(height, width)
            size = tuple(max(1, round(length * scale)) for length in (width, height))
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
        planes = np.moveaxis(image, 2, 0).astype(np.float32)
        gradient = np.maximum.reduce([gaussian_gradient_magnitude(p, self.sigma, mode="nearest") for p in planes])
        contrast = gradient * self.sigma * math.sqrt(2 * math.pi)  # a step's gradient under a Gaussian is its peak
        return LabelMap(np.round(contrast.clip(0, 255)).astype(np.uint8))
