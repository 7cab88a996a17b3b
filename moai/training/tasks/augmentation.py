"""Views of an image: cropped, mirrored, recoloured, blurred, bent; every random number from one generator."""

from __future__ import annotations

import math
from random import Random
from typing import Annotated

from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from pydantic import Field, StrictInt

from moai.settings import Number, Share, settings

__all__ = ["AugmentationSettings", "draw_view"]

_ASPECT = (3 / 4, 4 / 3)
_NUM_CROPS = 10
_BLUR_RADII = (0.1, 2.0)


@settings
class AugmentationSettings:
    """How views differ; the defaults are TCL's pre-training. RandAugment's operations are those without colours.

    Attributes:
        min_crop: Smallest share of the image that a view shows.
        flip: How often a view is mirrored; 0 where captions tell left from right.
        colour: How often colours are changed.
        colour_strength: By how much at most: brightness, contrast, saturation; hue by a quarter of it.
        grey: How often a view is grey.
        blur: How often it is blurred.
        num_operations: Operations of RandAugment (arXiv 1909.13719) per view.
        magnitude: Of them, 0 to 10.
    """

    min_crop: Annotated[Number, Field(gt=0, le=1)] = 0.2
    flip: Share = 0.5
    colour: Share = 0.8
    colour_strength: Share = 0.4
    grey: Share = 0.2
    blur: Share = 0.5
    num_operations: Annotated[StrictInt, Field(ge=0)] = 2
    magnitude: Annotated[Number, Field(ge=0, le=10)] = 7


def draw_view(image: Image.Image, side: int, chosen: AugmentationSettings, rng: Random) -> Image.Image:
    """A view of an image.

    Args:
        image: RGB.
        side: Height and width of the view.
        chosen: How views differ.
        rng: Random numbers.
    """
    view = image.resize((side, side), Image.Resampling.BICUBIC, box=_draw_crop(image.size, chosen.min_crop, rng))
    if rng.random() < chosen.colour:
        view = _recolour(view, chosen.colour_strength, rng)
    if rng.random() < chosen.grey:
        view = view.convert("L").convert("RGB")
    if rng.random() < chosen.blur:
        view = view.filter(ImageFilter.GaussianBlur(rng.uniform(*_BLUR_RADII)))
    if rng.random() < chosen.flip:
        view = ImageOps.mirror(view)
    for _ in range(chosen.num_operations):
        view = _bend(view, chosen.magnitude / 10, rng)
    return view


def _draw_crop(size: tuple[int, int], min_share: float, rng: Random) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a part of between ``min_share`` and all of the image; all where none fits."""
    width, height = size
    for _ in range(_NUM_CROPS):
        area = width * height * rng.uniform(min_share, 1)
        aspect = math.exp(rng.uniform(*map(math.log, _ASPECT)))
        across, down = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if across <= width and down <= height:
            left, top = rng.uniform(0, width - across), rng.uniform(0, height - down)
            return left, top, left + across, top + down
    return 0, 0, width, height


def _recolour(view: Image.Image, strength: float, rng: Random) -> Image.Image:
    changes = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color, None]
    rng.shuffle(changes)
    for change in changes:
        if change is not None:
            view = change(view).enhance(rng.uniform(1 - strength, 1 + strength))
            continue
        shift = round(255 * rng.uniform(-strength / 4, strength / 4))
        hue, saturation, value = view.convert("HSV").split()
        hue = hue.point([(level + shift) % 256 for level in range(256)])
        view = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    return view


def _bend(view: Image.Image, share: float, rng: Random) -> Image.Image:
    """One operation of RandAugment that keeps hues."""
    signed = share * rng.choice((-1, 1))
    kind = rng.randrange(10)
    if kind == 0:
        return view
    if kind == 1:
        return ImageOps.autocontrast(view)
    if kind == 2:
        return ImageOps.equalize(view)
    if kind in (3, 4):
        return (ImageEnhance.Brightness, ImageEnhance.Sharpness)[kind - 3](view).enhance(1 + 0.9 * signed)
    if kind == 5:
        return view.rotate(30 * signed, Image.Resampling.BILINEAR)
    moved = 0.3 * signed
    matrix = {
        6: (1, moved, 0, 0, 1, 0),
        7: (1, 0, 0, moved, 1, 0),
        8: (1, 0, moved * view.width, 0, 1, 0),
        9: (1, 0, 0, 0, 1, moved * view.height),
    }[kind]
    return view.transform(view.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
