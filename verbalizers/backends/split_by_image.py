"""Two verbalizers of one kind, of which each image gets one: small models know drawings or photographs, not both.

    {"kind": "detection", "backend": "by_image", "settings": {
        "drawing": {"backend": "owlv2", "checkpoint": "../verbalizers/owlv2-nano", "vocabulary": "..."},
        "photograph": {"backend": "nanodet", "checkpoint": "../verbalizers/nanodet-coco"}}}

in `verbalizers.json`. What stands beside `backend` are that backend's settings; null = nothing is found in such images.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from verbalizers.core.registry import build_verbalizer, register_verbalizer
from verbalizers.core.structures import Detections, Relations, Scene, Segments
from verbalizers.core.verbalizer import Verbalizer

__all__ = ["ByImage", "looks_photographed"]

# Two rules that err in other images: by grain, which JPEG removes, and by what is left of an image made small.
_GRAIN_SIDE = 256
#: Of the measures in `_measure_grain`.
_GRAIN_WEIGHTS, _GRAIN_BIAS = np.array([5.5, -21.5, 22.7, -22.4]), 7.5
#: Steps follow each other at least so much in photographs.
_MIN_FOLLOWING = -0.1
#: Without colours that alone decides.
_COLOURLESS, _MIN_FOLLOWING_GREY = 8, 0.08

_SIDE, _PATCH = 128, 8
#: Smaller images are looked at as drawings: they have too few patches to measure.
_MIN_SIDE = 4 * _PATCH
_STEPS = np.array([0, 1, 2, 4, 8, 16, 32])
_PERCENTILES = (10, 25, 50, 75, 90)
#: Of the measures in `_measure`, in their order; fitted to scenes and photographs as they are and saved as JPEG of
#: qualities from 50 on, grey, dark, bright and framed.
_WEIGHTS = np.array(
    [-2.073, -56.803, -6.541, -13.189, -18.785, -5.145]
    + [1.237, 0.139, -1.216, 1.331, -1.322]
    + [1.725, 1.327, 0.147, -0.234, -0.682]
    + [10.067, -12.819, -8.001, 8.37]
)
_BIAS = 25.4

#: What the last images were taken for, by shape and digest of their pixels.
_decided: dict[tuple[tuple[int, ...], bytes], bool] = {}
_deciding = threading.Lock()
_NUM_DECIDED = 256


def looks_photographed(image: np.ndarray) -> bool:
    """Whether an image is a photograph, not one of the drawn scenes: by its grain and, made small, by its contrasts.

    Args:
        image: uint8 `(H, W, 3)`.
    """
    pixels = np.ascontiguousarray(image)
    key = pixels.shape, hashlib.blake2b(pixels, digest_size=16).digest()
    with _deciding:  # verbalizers look side by side at one image: the first decides for all
        if key not in _decided:
            while len(_decided) >= _NUM_DECIDED:
                del _decided[next(iter(_decided))]
            _decided[key] = _decide(pixels)
        return _decided[key]


def _decide(image: np.ndarray) -> bool:
    small = _shrink(image, _SIDE)
    if min(small.shape[:2]) < _MIN_SIDE or _measure(small) @ _WEIGHTS + _BIAS <= 0:
        return False
    pixels = _shrink(image, _GRAIN_SIDE)
    measures = _measure_grain(pixels)
    if np.ptp(pixels, axis=2).max() < _COLOURLESS:
        return bool(measures[0] > _MIN_FOLLOWING_GREY)
    return bool(measures @ _GRAIN_WEIGHTS + _GRAIN_BIAS > 0 and measures[0] > _MIN_FOLLOWING)


def _shrink(image: np.ndarray, side: int) -> np.ndarray:
    small = Image.fromarray(image)
    small.thumbnail((side, side), Image.Resampling.BOX if side == _SIDE else Image.Resampling.BICUBIC)
    return np.asarray(small, dtype=np.float32)


def _measure_grain(pixels: np.ndarray) -> np.ndarray:
    """How small steps of grey follow each other; shares of steps of colour from 0.7 and from 1.5, of grey from 1.5.

    The grain of drawn scenes is each pixel's own, so that a small step of grey is followed by one back; in a photograph
    light changes smoothly, and colours change more from pixel to pixel.

    Args:
        pixels: float32 `(H, W, 3)`.
    """
    grey, red, blue = pixels.mean(axis=2), pixels[..., 0] - pixels[..., 1], pixels[..., 2] - pixels[..., 1]
    colours = [[_share(plane, *ends) for plane in (red, blue)] for ends in ((0.7, 1.5), (1.5, 5))]
    return np.array([_follow(grey, 1e-3), *np.mean(colours, axis=1), _share(grey, 1.5, 3)])


def _share(plane: np.ndarray, low: float, high: float) -> float:
    steps = np.concatenate([np.abs(np.diff(plane, axis=axis)).ravel() for axis in (0, 1)])
    return float(((steps >= low) & (steps < high)).mean())


def _measure(pixels: np.ndarray) -> np.ndarray:
    """Twenty numbers about an image.

    Args:
        pixels: float32 `(H, W, 3)`.

    Returns:
        float64 `(20,)`: shares of steps of grey by their size at a quarter of the image's size (6), percentiles of the
        contrast in patches of grey (5) and of the two differences of colour (5), how small steps follow each other at a
        quarter of the size, edges along the axes, brightness, and how small steps follow each other.
    """
    grey, red, blue = pixels.mean(axis=2), pixels[..., 0] - pixels[..., 1], pixels[..., 2] - pixels[..., 1]
    tiny = _halve(_halve(grey))
    steps = np.concatenate([np.abs(np.diff(tiny, axis=axis)).ravel() for axis in (0, 1)])
    shares = [((steps >= low) & (steps < high)).mean() for low, high in zip(_STEPS[:-1], _STEPS[1:], strict=True)]
    colours = np.mean([_contrasts(red), _contrasts(blue)], axis=0)
    others = [_follow(tiny), _share_along_axes(grey), grey.mean() / 255, _follow(grey)]
    return np.concatenate([shares, _contrasts(grey), colours, others])


def _halve(plane: np.ndarray) -> np.ndarray:
    height, width = plane.shape[0] // 2, plane.shape[1] // 2
    return plane[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean(axis=(1, 3))


def _contrasts(plane: np.ndarray) -> np.ndarray:
    rows, columns = plane.shape[0] // _PATCH, plane.shape[1] // _PATCH
    patches = plane[: rows * _PATCH, : columns * _PATCH].reshape(rows, _PATCH, columns, _PATCH)
    return np.percentile(np.log(patches.std(axis=(1, 3)) + 0.5), _PERCENTILES)


def _follow(plane: np.ndarray, least: float = 1e-2) -> float:
    """Correlation of small steps with the next ones: positive where light changes smoothly, negative in grain."""
    found = []
    for rows in (plane, plane.T):
        steps = np.diff(rows, axis=1)
        first, second = steps[:, :-1], steps[:, 1:]
        is_small = (np.abs(first) < 8) & (np.abs(second) < 8)
        found.append(
            (first * second)[is_small].mean() / (least + (second[is_small] ** 2).mean()) if is_small.any() else 0
        )
    return float(np.mean(found))


def _share_along_axes(grey: np.ndarray) -> float:
    """Of the strong edges those along the image's axes."""
    down, across = np.diff(grey, axis=0)[:, :-1], np.diff(grey, axis=1)[:-1]
    angle = np.abs(np.arctan2(down, across))
    angle = np.minimum(angle, np.pi - angle)[np.hypot(across, down) > 8]
    return float(((angle < 0.15) | (angle > np.pi / 2 - 0.15)).mean()) if angle.size else 0.0


@dataclass(eq=False, kw_only=True)
class ByImage(Verbalizer):
    """One verbalizer for drawings, another for photographs.

    Attributes:
        drawing: backend, and its settings, of the one that looks at images like drawn scenes; None = nobody does.
        photograph: likewise, at all others.
    """

    drawing: Mapping[str, Any] | None
    photograph: Mapping[str, Any] | None

    version: ClassVar[int] = 2

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
