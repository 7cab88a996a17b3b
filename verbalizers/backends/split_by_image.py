"""Two verbalizers of one kind, of which each image gets one: small models know drawings or photographs, not both.

    {"kind": "detection", "backend": "by_image", "settings": {
        "drawing": {"backend": "owlv2", "checkpoint": "../verbalizers/owlv2-nano", "vocabulary": "..."},
        "photograph": {"backend": "nanodet", "checkpoint": "../verbalizers/nanodet-coco"}}}

in `verbalizers.json`. What stands beside `backend` are that backend's settings; null = nothing is found in such images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from verbalizers.core.registry import build_verbalizer, register_verbalizer
from verbalizers.core.structures import Detections, Relations, Scene, Segments
from verbalizers.core.verbalizer import Verbalizer

__all__ = ["ByImage", "looks_photographed"]

_SIDE = 256
#: Of the measures in `_measure`; fitted to 225 photographs and parts of them, and 130 scenes.
_WEIGHTS, _BIAS = np.array([5.5, -21.5, 22.7, -22.4]), 7.5
#: Steps follow each other at least so much in photographs; in drawn scenes saved as JPEG they do not either.
_MIN_FOLLOWING = -0.1
#: Without colours that alone decides.
_COLOURLESS, _MIN_FOLLOWING_GREY = 8, 0.08


def looks_photographed(image: np.ndarray) -> bool:
    """Whether an image is a photograph, not one of the drawn scenes.

    Their grain is each pixel's own, so that a small step of grey is followed by one back; in a photograph light changes
    smoothly, and colours change more from pixel to pixel.

    Args:
        image: uint8 `(H, W, 3)`.
    """
    small = Image.fromarray(image)
    small.thumbnail((_SIDE, _SIDE))
    pixels = np.asarray(small, dtype=np.float32)
    if min(pixels.shape[:2]) < 3:
        return False
    measures = _measure(pixels)
    if np.ptp(pixels, axis=2).max() < _COLOURLESS:
        return bool(measures[0] > _MIN_FOLLOWING_GREY)
    return bool(measures @ _WEIGHTS + _BIAS > 0 and measures[0] > _MIN_FOLLOWING)


def _measure(pixels: np.ndarray) -> np.ndarray:
    """How small steps of grey follow each other; shares of steps of colour from 0.7 and from 1.5, of grey from 1.5.

    Args:
        pixels: float `(H, W, 3)`.
    """
    grey, red, blue = pixels.mean(axis=2), pixels[..., 0] - pixels[..., 1], pixels[..., 2] - pixels[..., 1]
    following = np.mean([_follow(np.diff(grey, axis=axis), axis) for axis in (0, 1)])
    colours = [_share(plane, 0.7, 1.5) for plane in (red, blue)], [_share(plane, 1.5, 5) for plane in (red, blue)]
    return np.array([following, np.mean(colours[0]), np.mean(colours[1]), _share(grey, 1.5, 3)])


def _follow(steps: np.ndarray, axis: int) -> float:
    first, second = (
        np.take(steps, range(*ends), axis) for ends in ((0, steps.shape[axis] - 1), (1, steps.shape[axis]))
    )
    is_small = (np.abs(first) < 8) & (np.abs(second) < 8)
    if not is_small.any():
        return 0.0
    return float((first * second)[is_small].mean() / (1e-3 + (second[is_small] ** 2).mean()))


def _share(plane: np.ndarray, low: float, high: float) -> float:
    steps = np.concatenate([np.abs(np.diff(plane, axis=axis)).ravel() for axis in (0, 1)])
    return float(((steps >= low) & (steps < high)).mean())


@dataclass(eq=False, kw_only=True)
class ByImage(Verbalizer):
    """One verbalizer for drawings, another for photographs.

    Attributes:
        drawing: backend, and its settings, of the one that looks at images like drawn scenes; None = nobody does.
        photograph: likewise, at all others.
    """

    drawing: Mapping[str, Any] | None
    photograph: Mapping[str, Any] | None

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.drawing is None and self.photograph is None:
            raise ValueError(f"{self.kind}/by_image expected `drawing` or `photograph`, got neither. Name a backend.")
        self._parts = {name: self._build(name) for name in ("drawing", "photograph")}
        if any(part is not None and part.uses for part in self._parts.values()):
            self.uses = tuple(dict.fromkeys(use for part in self._parts.values() if part for use in part.uses))

    def _build(self, name: str) -> Verbalizer | None:
        settings = getattr(self, name)
        if settings is None:
            return None
        if not isinstance(settings, Mapping) or settings.get("backend") in (None, "by_image"):
            raise ValueError(
                f"{self.kind}/by_image expected `{name}` to be null or to name a `backend`, got {settings!r}."
            )
        return build_verbalizer(self.kind, **settings)

    def predict(self, images: Sequence[np.ndarray]) -> list[Any]:
        """See `Verbalizer.predict`."""
        return self.predict_with(images, [Scene(image_size_hw=image.shape[:2]) for image in images])

    def predict_with(self, images: Sequence[np.ndarray], scenes: Sequence[Scene]) -> list[Any]:
        """See `Verbalizer.predict_with`."""
        names = ["photograph" if looks_photographed(image) else "drawing" for image in images]
        found: list[Any] = [None] * len(images)
        for name, part in self._parts.items():
            rows = [row for row, chosen in enumerate(names) if chosen == name]
            if part is None:
                findings = [_NOTHING[self.kind](images[row].shape[:2]) for row in rows]
            else:
                findings = part.predict_with([images[row] for row in rows], [scenes[row] for row in rows])
            for row, finding in zip(rows, findings, strict=True):
                found[row] = finding
        return found

    def fingerprint(self) -> str:
        """See `Verbalizer.fingerprint`: those of both."""
        parts = {name: part and part.fingerprint() for name, part in self._parts.items()}
        return hashlib.sha256(json.dumps([self.kind, "by_image", self.version, parts]).encode()).hexdigest()[:16]


def _no_relations(size_hw: tuple[int, int]) -> Relations:
    return Relations((), np.zeros(0, np.int64), np.zeros(0, np.int64), (), np.zeros(0, np.float32))


_NOTHING: dict[str, Callable[[tuple[int, int]], Any]] = {
    "segmentation": lambda size_hw: Segments(np.zeros(size_hw, np.int32), (), (), np.zeros(0, np.float32)),
    "detection": lambda size_hw: Detections(np.zeros((0, 4), np.float32), (), np.zeros(0, np.float32), size_hw),
    "scene_graph": _no_relations,
}


@register_verbalizer("segmentation", "by_image")
class SegmentationByImage(ByImage):
    """See `ByImage`."""


@register_verbalizer("detection", "by_image")
class DetectionByImage(ByImage):
    """See `ByImage`."""


@register_verbalizer("scene_graph", "by_image")
class SceneGraphByImage(ByImage):
    """See `ByImage`."""
