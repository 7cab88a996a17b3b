"""A sheet of example scenes with their questions, for the documentation.

python -m recipes.contact_sheet docs/scenes.jpg
"""

import argparse
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw

from moai.scenes.asset_loading import load_font
from moai.scenes.questions import QUESTION_KINDS
from moai.scenes.scenery import SCENERIES
from moai.scenes.scenes import Scenes, SceneSample
from verbalizers import draw_scene

__all__ = ["main", "make_contact_sheet", "save_contact_sheet"]

_TILE, _CAPTION, _MARGIN = 320, 58, 8
_COLUMNS = 4
_MAX_SEARCH = 3000
_MAX_ANSWER = 60  # longer ones do not fit under an image
_PAPER, _INK, _MUTED = (255, 255, 255), (28, 30, 36), (110, 114, 124)


def _choose_samples(scenes: Scenes, count: int) -> list[SceneSample]:
    """The first telling scenes from every scenery in turn: rich ones, then (for the overlays) sparse ones."""
    num_rich = max(count - _COLUMNS, 1)
    wanted = [SCENERIES[k % len(SCENERIES)] for k in range(num_rich)]
    rich: list[SceneSample] = []
    sparse: list[SceneSample] = []
    for index in range(_MAX_SEARCH):
        if not wanted and len(sparse) >= count - num_rich:
            break
        sample = scenes[index]
        layout = sample.layout
        if not any(target >= len(layout.stuff) for _, _, target in layout.relations):
            continue
        if layout.scenery in wanted and len(layout.objects) >= 4:
            wanted.remove(layout.scenery)
            rich.append(sample)
        elif len(layout.objects) == 3 and layout.scenery not in {other.layout.scenery for other in sparse}:
            sparse.append(sample)
    return [*rich, *sparse[: count - num_rich]]


def _draw_caption(sheet: ImageDraw.ImageDraw, x: int, y: int, sample: SceneSample, kind_first: int) -> None:
    kinds = [QUESTION_KINDS[(kind_first + k) % len(QUESTION_KINDS)] for k in range(len(QUESTION_KINDS))]
    short = [q for q in sample.questions if len(q.answer) <= _MAX_ANSWER]
    short.sort(key=lambda question: kinds.index(question.kind))
    font, small = load_font(0, 13), load_font(0, 11)
    for line, question in enumerate(short[:2]):
        text = textwrap.shorten(question.question, 40, placeholder=" ...")
        top = y + 4 + line * 27
        sheet.text((x, top), text, _INK, small)
        sheet.text((x + 12, top + 13), question.answer, (20, 92, 160), font if len(question.answer) < 30 else small)
        width = small.getlength(question.kind)
        sheet.text((x + _TILE - width, top), question.kind, _MUTED, small)


def make_contact_sheet(scenes: Scenes, num_images: int = 16) -> Image.Image:
    """Images in a grid, two questions with answers under each; the last row shows the truth drawn over.

    Args:
        scenes: where the images come from.
        num_images: how many; a multiple of 4.
    """
    samples = _choose_samples(scenes, num_images)
    rows = -(-len(samples) // _COLUMNS)
    step_x, step_y = _TILE + _MARGIN, _TILE + _CAPTION + _MARGIN
    sheet = Image.new("RGB", (_COLUMNS * step_x + _MARGIN, rows * step_y + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, sample in enumerate(samples):
        x, y = _MARGIN + number % _COLUMNS * step_x, _MARGIN + number // _COLUMNS * step_y
        image = Image.fromarray(sample.image)
        if rows > 1 and number >= (rows - 1) * _COLUMNS:
            image = draw_scene(sample.truth, image)
        sheet.paste(image.resize((_TILE, _TILE), Image.Resampling.LANCZOS), (x, y))
        _draw_caption(draw, x, y + _TILE, sample, number)
    return sheet


def save_contact_sheet(path: str | Path, num_images: int = 16, seed: int = 0) -> None:
    """Write `make_contact_sheet` of the test split to an image file.

    Args:
        path: .jpg or .png.
        num_images: how many images.
        seed: of the stream.
    """
    scenes = Scenes(split="test", seed=seed, image_size=448, num_objects=(2, 7), sign_probability=0.8)
    make_contact_sheet(scenes, num_images).save(path, quality=88)


def main() -> None:
    """Command line: write a contact sheet."""
    parser = argparse.ArgumentParser(prog="python -m recipes.contact_sheet", description="Example scenes on a sheet.")
    parser.add_argument("path", help=".jpg or .png to write")
    parser.add_argument("--images", type=int, default=16, help="images on the sheet (default 16)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    save_contact_sheet(arguments.path, arguments.images, arguments.seed)
    print(f"wrote {arguments.path}")


if __name__ == "__main__":
    main()
