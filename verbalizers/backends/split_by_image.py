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
#: Steps of grey between neighbours, both ways together: those that are none, and those that are edges.
_FLAT, _EDGE = 1.5, 40.0
#: Shares of flat pixels and of edges, and the median step, that drawn scenes have.
_DRAWN_FLAT, _DRAWN_EDGES, _DRAWN_MEDIAN = (0.05, 0.4), 0.16, 9.0


def looks_photographed(image: np.ndarray) -> bool:
    """Whether an image is surely none of the drawn scenes: its steps of grey are spread otherwise.

    Args:
        image: uint8 `(H, W, 3)`.
    """
    small = Image.fromarray(image).convert("L")
    small.thumbnail((_SIDE, _SIDE))
    grey = np.asarray(small, dtype=np.float32)
    if min(grey.shape) < 2:
        return False
    steps = np.abs(np.diff(grey, axis=1))[:-1] + np.abs(np.diff(grey, axis=0))[:, :-1]
    flat = float((steps < _FLAT).mean())
    is_spread = not _DRAWN_FLAT[0] <= flat <= _DRAWN_FLAT[1]
    return is_spread or float((steps > _EDGE).mean()) > _DRAWN_EDGES or float(np.median(steps)) > _DRAWN_MEDIAN


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
