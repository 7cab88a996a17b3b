"""Build the sprite sheet of the scenes from Google's Noto colour emoji font and our own drawings.

    python -m recipes.scene_assets NotoColorEmoji.ttf

writes `sprites.png` (all images cropped to what is visible, packed in rows) and `sprites.json` (name -> list of
[x, y, width, height] in the sheet) into the package's assets. Needs Pillow with raqm, because skin tones and genders
are joined emoji sequences. The font: Debian package fonts-noto-color-emoji (SIL Open Font License 1.1).
"""

import argparse
import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

from moai.scenes.asset_loading import ASSETS_FOLDER
from moai.scenes.vocabulary import OBJECT_CLASSES

from .drawings import render_drawing

__all__ = ["build_sprite_sheet", "main"]

_BITMAP_SIZE = 109  # the only strike of Noto's bitmap font
_CELL_WH = (136, 128)
_SHEET_WIDTH = 2048
_EMOJI_STYLE = "\ufe0f"


def _render_emoji(code_points: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    text = "".join(chr(int(code, 16)) for code in code_points.split("-"))
    if len(text) == 1:
        text += _EMOJI_STYLE
    cell = Image.new("RGBA", _CELL_WH)
    ImageDraw.Draw(cell).text((0, 0), text, font=font, embedded_color=True)
    return cell


def _crop_to_visible(image: Image.Image, name: str) -> Image.Image:
    box = image.getchannel("A").point(lambda a: 255 if a > 127 else 0).getbbox()
    if box is None:
        raise ValueError(f"the font has no image for {name!r}; use a newer Noto colour emoji font.")
    return image.crop(box)


def build_sprite_sheet(font_path: str | Path) -> tuple[Image.Image, dict[str, list[list[int]]]]:
    """Draw every sprite of the vocabulary and pack them.

    Returns:
        The RGBA sheet, and for each object name the boxes [x, y, width, height] of its sprites.

    Raises:
        ImportError: Pillow was built without raqm.
        ValueError: the font lacks an image.
    """
    if not features.check("raqm"):
        raise ImportError(
            "expected Pillow with raqm (its wheels have it); reinstall with `pip install --upgrade Pillow`."
        )
    font = ImageFont.truetype(str(font_path), _BITMAP_SIZE)
    images = []
    for object_class in OBJECT_CLASSES.values():
        if object_class.group == "sign":
            continue  # signs are painted with their words
        drawn = [_render_emoji(code, font) for code in object_class.sprites] or [render_drawing(object_class.name, 128)]
        images += [(object_class.name, _crop_to_visible(image, object_class.name)) for image in drawn]
    sheet, boxes = Image.new("RGBA", (_SHEET_WIDTH, 8192)), {}
    x = y = row_height = 0
    for name, image in images:
        if x + image.width > _SHEET_WIDTH:
            x, y, row_height = 0, y + row_height, 0
        sheet.paste(image, (x, y))
        boxes.setdefault(name, []).append([x, y, image.width, image.height])
        x, row_height = x + image.width, max(row_height, image.height)
    return sheet.crop((0, 0, _SHEET_WIDTH, y + row_height)), boxes


def main() -> None:
    """Command line: build the sheet and write it into the package's assets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("font", help="NotoColorEmoji.ttf")
    parser.add_argument("--out", type=Path, default=ASSETS_FOLDER)
    arguments = parser.parse_args()
    sheet, boxes = build_sprite_sheet(arguments.font)
    sheet.save(arguments.out / "sprites.png", optimize=True)
    (arguments.out / "sprites.json").write_text(json.dumps(boxes, indent=None, separators=(",", ":")) + "\n")
    print(f"{sum(map(len, boxes.values()))} sprites of {len(boxes)} names, sheet {sheet.width}x{sheet.height}")


if __name__ == "__main__":
    main()
