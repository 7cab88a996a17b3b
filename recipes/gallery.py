"""Overlays of a checkpoint's verbalizers' findings, for the documentation.

    python -m recipes.gallery --model checkpoints/moai-nano --out docs

Writes ``gallery_scenes.jpg`` (test scenes) and ``gallery_photographs.jpg`` (the example photographs). Every row is one
image, then what segmenter, detector and text reader, and scene graph found, drawn by `draw_scene`.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from moai.checkpoints.io.lookup import find_checkpoint
from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from moai.processing.image_loading import load_image
from moai.scenes.asset_loading import load_font
from moai.scenes.scenes import Scenes
from verbalizers import SCENE_FIELDS, Scene, draw_scene, parse_scene, verbalize_scene

__all__ = ["main", "make_gallery"]

_TILE, _CAPTION, _MARGIN, _CAPTION_LINES = 336, 80, 8, 5
_PAPER, _INK = (255, 255, 255), (28, 30, 36)
#: Columns behind the image: which findings are drawn, and whose words stand below.
_COLUMNS = (("segments",), ("detections", "text_lines"), ("relations",))
_KIND_OF_FIELD = {field: kind for kind, field in SCENE_FIELDS.items()}


def make_gallery(images: Sequence[Image.Image], scenes: Sequence[Scene], settings: VerbalizerSettings) -> Image.Image:
    """One row per image.

    Args:
        images: RGB.
        scenes: What was found in each.
        settings: Which words are worth saying.
    """
    step_x, step_y = _TILE + _MARGIN, _TILE + _CAPTION + _MARGIN
    sheet = Image.new("RGB", ((1 + len(_COLUMNS)) * step_x + _MARGIN, len(images) * step_y + _MARGIN), _PAPER)
    pen, font = ImageDraw.Draw(sheet), load_font(0, 12)
    for row, (image, scene) in enumerate(zip(images, scenes, strict=True)):
        top = _MARGIN + row * step_y
        sheet.paste(_fitted(image), (_MARGIN, top))
        for column, fields in enumerate(_COLUMNS, start=1):
            left = _MARGIN + column * step_x
            hidden = {name: None for name in _KIND_OF_FIELD if name not in fields}
            shown = replace(scene, **hidden)
            sheet.paste(_fitted(draw_scene(shown, image)), (left, top))
            words = verbalize_scene(shown, tuple(_KIND_OF_FIELD[name] for name in fields), settings=settings.words)
            lines = textwrap.wrap(words, 46, max_lines=_CAPTION_LINES, placeholder=" ...")
            pen.multiline_text((left, top + _TILE + 4), "\n".join(lines), _INK, font, spacing=2)
    return sheet


def _fitted(image: Image.Image) -> Image.Image:
    """The image within a tile, on paper."""
    small = image.copy()
    small.thumbnail((_TILE, _TILE), Image.Resampling.LANCZOS)
    tile = Image.new("RGB", (_TILE, _TILE), _PAPER)
    tile.paste(small, ((_TILE - small.width) // 2, (_TILE - small.height) // 2))
    return tile


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Write the documentation's gallery.")
    parser.add_argument("--model", default="moai-nano", help="checkpoint whose verbalizers look")
    parser.add_argument("--out", required=True, type=Path, help="folder that receives the images")
    parser.add_argument("--scenes", type=int, default=6, help="how many test scenes")
    parser.add_argument("--photographs", type=Path, nargs="*", help="photographs (default: the examples)")
    chosen = parser.parse_args(arguments)
    settings = VerbalizerSettings.load(find_checkpoint(chosen.model))
    verbalizers, absent = settings.build()
    for kind, reason in absent.items():
        print(f"without {kind}: {reason}")
    examples = Path(__file__).resolve().parents[1] / "examples"
    photographs = chosen.photographs if chosen.photographs is not None else sorted(examples.glob("*.jpg"))
    stream = Scenes("test", num_questions=1, num_objects=(3, 6), length=chosen.scenes)
    groups = {
        "gallery_scenes.jpg": [Image.fromarray(sample.image) for sample in stream],
        "gallery_photographs.jpg": [load_image(photograph) for photograph in photographs],
    }
    chosen.out.mkdir(parents=True, exist_ok=True)
    for name, images in groups.items():
        if not images:
            continue
        scenes = parse_scene([np.asarray(image) for image in images], verbalizers)
        make_gallery(images, scenes, settings).save(chosen.out / name, quality=85)
        print(f"wrote {chosen.out / name}")


if __name__ == "__main__":
    main()
