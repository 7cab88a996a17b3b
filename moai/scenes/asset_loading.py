"""Images and fonts that scenes are painted with: one sprite sheet and five fonts in `assets/scenes`.

Loaded on first use and kept for the life of the process. Licences: see `assets/scenes/LICENSES.md`.
"""

import json
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["ASSETS_FOLDER", "FONT_FILES", "load_font", "sprite_boxes", "sprite_mask", "sprite_image", "text_extent"]

ASSETS_FOLDER = Path(__file__).parent / "assets" / "scenes"

# File and whether it has lower-case letters.
FONT_FILES: tuple[tuple[str, bool], ...] = (
    ("DejaVuSans-Bold.ttf", True),
    ("DejaVuSerif-Bold.ttf", True),
    ("ComicNeue-Bold.otf", True),
    ("BebasNeue-Regular.otf", False),
    ("CourierPrime-Bold.otf", True),
)
_MEASURING_SIZE = 64


def _asset(name: str) -> Path:
    path = ASSETS_FOLDER / name
    if not path.is_file():
        raise FileNotFoundError(
            f"expected the scene asset {name!r} beside {Path(__file__).name}, found none. "
            "Reinstall moai-vlm (the assets are part of the package)."
        )
    return path


@cache
def sprite_boxes() -> dict[str, tuple[tuple[int, int, int, int], ...]]:
    """Object name -> boxes (x, y, width, height) of its sprites in the sheet, in pixels."""
    boxes = json.loads(_asset("sprites.json").read_text())
    return {name: tuple(tuple(box) for box in entry) for name, entry in boxes.items()}


@cache
def _sheet() -> Image.Image:
    with Image.open(_asset("sprites.png")) as sheet:
        return sheet.convert("RGBA")


@cache
def sprite_image(name: str, index: int) -> Image.Image:
    """RGBA image of a sprite, cropped to what is visible; about 128 pixels on its longer side."""
    x, y, width, height = sprite_boxes()[name][index]
    return _sheet().crop((x, y, x + width, y + height))


@cache
def sprite_mask(name: str, index: int) -> np.ndarray:
    """Bool (height, width): where a sprite is opaque."""
    return np.asarray(sprite_image(name, index).getchannel("A")) > 127


@lru_cache(maxsize=256)
def load_font(index: int, size: int) -> ImageFont.FreeTypeFont:
    """Font number `index` of `FONT_FILES` at `size` pixels; shaped simply, so that every Pillow gives the same."""
    return ImageFont.truetype(str(_asset(FONT_FILES[index][0])), size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=4096)
def text_extent(text: str, font_index: int) -> tuple[float, float, float, float]:
    """Ink box (left, top, right, bottom) of `text` from the pen's origin, in units of the font size."""
    font = load_font(font_index, _MEASURING_SIZE)
    # getbbox() counts the pen's advance as ink; only painted pixels tell where a reader sees the word.
    _, _, right, bottom = font.getbbox(text, anchor="ls")
    margin = _MEASURING_SIZE
    paper = Image.new("L", (int(right) + 2 * margin, int(bottom) + 2 * margin))
    ImageDraw.Draw(paper).text((margin, margin), text, 255, font, anchor="ls")
    return tuple((value - margin) / _MEASURING_SIZE for value in paper.getbbox())
