"""The colours of things: a verbalizer in a package of its own, in three steps.

Installed with `pip install examples/colour_verbalizer`, it is there by name: `moai verbalize image.jpg
--verbalizers ocr,colour`, or `{"kind": "colour"}` in a checkpoint's verbalizers.json. Nothing of moai-vlm knows of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from verbalizers import Finding, Scene, Verbalizer, WordSettings, register_finding, register_verbalizer, register_words

GRID = 32

COLOURS = {
    "black": (20, 20, 20),
    "white": (240, 240, 240),
    "grey": (128, 128, 128),
    "red": (200, 30, 30),
    "orange": (240, 140, 20),
    "yellow": (240, 220, 40),
    "green": (40, 150, 50),
    "blue": (40, 80, 200),
    "purple": (130, 50, 160),
    "pink": (240, 150, 180),
    "brown": (110, 70, 40),
}


# Step 1: the finding. What the words need and no more; it travels through JSON and the cache by itself.
@register_finding
@dataclass(frozen=True, eq=False)
class ColourGrid(Finding):
    """The mean colour of each field of a grid laid over the image.

    Attributes:
        rgb: uint8 `(GRID, GRID, 3)`, rows from the top.
    """

    structure: ClassVar[str] = "colour_grid"

    rgb: np.ndarray

    def __post_init__(self) -> None:
        rgb = np.array(self.rgb, dtype=np.uint8)
        if rgb.shape != (GRID, GRID, 3):
            raise ValueError(f"`rgb` must have shape {(GRID, GRID, 3)}, got {rgb.shape}.")
        self._set(rgb=rgb)

    def name_at(self, box_xyxy: np.ndarray, image_size_hw: tuple[int, int]) -> str:
        """The name of the median colour inside a box `(4,)` of pixels."""
        height, width = image_size_hw
        scale = GRID / np.array([width, height, width, height])
        x0, y0, x1, y1 = np.clip(np.round(box_xyxy * scale), 0, GRID).astype(int)
        fields = self.rgb[min(y0, GRID - 1) : max(y1, y0 + 1), min(x0, GRID - 1) : max(x1, x0 + 1)].reshape(-1, 3)
        distances = np.linalg.norm(np.array(list(COLOURS.values())) - np.median(fields, axis=0), axis=1)
        return list(COLOURS)[int(distances.argmin())]


# Step 2: the verbalizer. One method: images in, one finding per image out.
@register_verbalizer("colour", "mean")
class ColourVerbalizer(Verbalizer):
    """Averages the image's pixels over a grid."""

    def predict(self, images: Sequence[np.ndarray]) -> list[ColourGrid]:
        """Look at uint8 `(H, W, 3)` RGB images."""
        return [ColourGrid(self._average(image)) for image in images]

    @staticmethod
    def _average(image: np.ndarray) -> np.ndarray:
        rows, columns = (np.minimum(np.arange(GRID + 1) * n // GRID, n - 1) for n in image.shape[:2])
        fields = [
            [
                image[top : max(bottom, top + 1), left : max(right, left + 1)].mean(axis=(0, 1))
                for left, right in zip(columns[:-1], columns[1:], strict=True)
            ]
            for top, bottom in zip(rows[:-1], rows[1:], strict=True)
        ]
        return np.round(fields).astype(np.uint8)


# Step 3: the words. They see the whole scene: here, what the detector found.
@register_words("colour")
def verbalize_colours(grid: ColourGrid, scene: Scene, settings: WordSettings) -> str:
    """`The image includes colours of objects: balloon is red, and car is blue.`, for detections that are sure."""
    if scene.detections is None:
        return ""
    found = zip(scene.detections.class_names, scene.detections.boxes_xyxy, scene.detections.confidence, strict=True)
    items = [
        f"{name} is {grid.name_at(box, scene.image_size_hw)}"
        for name, box, confidence in found
        if confidence >= settings.detection_threshold
    ]
    return "The image includes colours of objects: " + ", and ".join(items) + "." if items else ""
