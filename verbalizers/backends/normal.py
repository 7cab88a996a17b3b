"""Surface normals: which way what is seen at every pixel faces. A map without words.

From a model of normals, or from depth: a plane in space is a plane in inverse depth too, and its slope there is the
normal's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from verbalizers.backends.depth import TransformersDepth, predict_dense
from verbalizers.core.checkpoints import from_pretrained
from verbalizers.core.label_map import LabelMap
from verbalizers.core.registry import register_verbalizer
from verbalizers.core.structures import Scene
from verbalizers.core.validation import check_range
from verbalizers.core.verbalizer import FindingsReader

if TYPE_CHECKING:
    import torch

__all__ = ["GeometricNormals", "TransformersNormals", "normals_from_inverse_depth"]


@dataclass(eq=False, kw_only=True)
class CameraSettings:
    """What an image does not tell and normals from depth need.

    Attributes:
        field_of_view: of the camera along the longer side, in degrees.
        depth_range: how many times as far as the nearest pixel the farthest is, where depth is known but for its scale
            and shift.
    """

    field_of_view: float = 60.0
    depth_range: float = 5.0

    def __post_init__(self) -> None:
        check_range(self, "field_of_view", high=170, is_open=True)
        check_range(self, "depth_range", low=1, high=None, is_open=True)

    def make_inverse_depth(self, shares: np.ndarray) -> np.ndarray:
        """Nearness in [0, 1] as inverse depth, 1 = nearest."""
        return (1 + (self.depth_range - 1) * shares) / self.depth_range


@register_verbalizer("normal", "geometric")
@dataclass(eq=False, kw_only=True)
class GeometricNormals(CameraSettings, FindingsReader):
    """Normals from the depth that another verbalizer found in the same image; needs no weights.

    Which way a surface leans is right where depth is; how far it leans rests on `field_of_view` and `depth_range`.
    """

    uses: ClassVar[tuple[str, ...]] = ("depth",)

    def predict_with(self, images: Sequence[np.ndarray], scenes: Sequence[Scene]) -> list[LabelMap]:
        """Normals of scenes with depth; the images are not read.

        Raises:
            ValueError: a scene has no map of depth.
        """
        return [self._turn(scene) for scene in scenes]

    def _turn(self, scene: Scene) -> LabelMap:
        depth = scene.findings.get("depth")
        if not isinstance(depth, LabelMap):
            reason = f" ({scene.failures['depth']})" if "depth" in scene.failures else ""
            raise ValueError(
                f"normal/geometric expected a map of depth of the image, got none{reason}. Let a depth verbalizer look "
                "too, or give normal/transformers a checkpoint."
            )
        inverse_depth = self.make_inverse_depth(depth.read_shares())
        return _encode(normals_from_inverse_depth(inverse_depth, self.field_of_view))


@register_verbalizer("normal", "transformers")
@dataclass(eq=False, kw_only=True)
class TransformersNormals(CameraSettings, TransformersDepth):
    """Any `AutoModelForNormalEstimation` (Sapiens2, TIPSv2), or normals from any `AutoModelForDepthEstimation`.

    A model of normals is believed as it is, its axes included. Of a model of depth in metres, `field_of_view` counts;
    of one of inverse depth, whose scale and shift are unknown, `depth_range` too.
    """

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        CameraSettings.__post_init__(self)
        TransformersDepth.__post_init__(self)

    def _load(self, device: torch.device, dtype: torch.dtype) -> SimpleNamespace:
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForNormalEstimation

        architectures = from_pretrained(AutoConfig, self.checkpoint).architectures or []
        if not any(name.endswith(("ForNormalEstimation", "ForDensePrediction")) for name in architectures):
            return super()._load(device, dtype)
        loader = AutoModelForNormalEstimation
        model = from_pretrained(loader, self.checkpoint, dtype=dtype, use_safetensors=True)
        processor = from_pretrained(AutoImageProcessor, self.checkpoint)
        return SimpleNamespace(model=model.to(device).eval(), processor=processor, is_disparity=None)

    def _predict_batch(self, loaded: SimpleNamespace, images: list[np.ndarray]) -> list[LabelMap]:
        if loaded.is_disparity is None:
            maps = predict_dense(loaded.model, loaded.processor, images, "normals")
            return [_encode(np.moveaxis(normals.astype(np.float64), 0, 2)) for normals in maps]
        maps = predict_dense(loaded.model, loaded.processor, images, "predicted_depth")
        return [self._turn(values.astype(np.float64), loaded.is_disparity) for values in maps]

    def _turn(self, values: np.ndarray, is_disparity: bool) -> LabelMap:
        if is_disparity:
            low, high = values.min(), values.max()
            inverse_depth = self.make_inverse_depth((values - low) / (high - low) if high > low else 0 * values)
        else:
            inverse_depth = 1 / np.maximum(values, 1e-3)
        return _encode(normals_from_inverse_depth(inverse_depth, self.field_of_view))


def normals_from_inverse_depth(inverse_depth: np.ndarray, field_of_view: float) -> np.ndarray:
    """Unit normals of the surface that a map of inverse depth shows.

    Args:
        inverse_depth: floats `(h, w)` over the whole image, above 0, in any unit.
        field_of_view: of the camera along the longer side, in degrees.

    Returns:
        float64 `(h, w, 3)`: x to the right, y up, z towards the camera. A wall in front of it is (0, 0, 1), a floor
        (0, 1, 0).
    """
    height, width = inverse_depth.shape
    focal = max(height, width) / 2 / math.tan(math.radians(field_of_view) / 2)
    slope_down = np.gradient(inverse_depth, axis=0) if height > 1 else np.zeros(inverse_depth.shape)
    slope_right = np.gradient(inverse_depth, axis=1) if width > 1 else np.zeros(inverse_depth.shape)
    y = np.arange(height)[:, None] - (height - 1) / 2
    x = np.arange(width) - (width - 1) / 2
    # Of a plane n . P = c, P = Z (x / f, y / f, 1): n_x x / f + n_y y / f + n_z = c / Z, the inverse depth.
    along = inverse_depth - x * slope_right - y * slope_down
    normals = np.stack([-focal * slope_right, focal * slope_down, along], axis=2)
    return normals / np.maximum(np.linalg.norm(normals, axis=2, keepdims=True), 1e-12)


def _encode(normals: np.ndarray) -> LabelMap:
    """Unit vectors `(h, w, 3)` as a map of shares: -1 is 0, 1 is 255."""
    return LabelMap(np.round(255 * ((normals + 1) / 2).clip(0, 1)).astype(np.uint8))
