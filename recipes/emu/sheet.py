"""What the tiny Emu draws: a sheet of it, and the names that bundled verbalizers find in it."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from moai import Pipeline
from moai.checkpoints.io.lookup import find_checkpoint
from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from moai.evaluation.intervals import wilson_interval
from moai.scenes.asset_loading import load_font
from verbalizers import Verbalizer, build_verbalizer
from verbalizers.core.durable_files import atomic_file, write_json

from .config import SheetSettings, TinyEmuConfig
from .world import draw_world, list_captions, write_caption

__all__ = ["count_found", "make_sheet"]

_SIDE, _LABEL, _COLUMNS = 96, 26, 8
#: Who of the bundled verbalizers looks for what: those that see it best in Scenes of this size. None is told what was
#: asked for.
_JUDGES = {"thing": ("detection", "photograph"), "ground": ("segmentation", "drawing")}


def make_sheet(config: TinyEmuConfig, checkpoint: Path, out: Path) -> dict[str, Any]:
    """Draw every caption, write ``sheet.png`` and ``result.json``; returns the latter's content."""
    learned, held_out = list_captions(config.world)
    captions = [*held_out, *learned]
    drawn = _draw_all(captions, checkpoint, config.sheet, out / "drawn")
    painted = [draw_world(*said, config.world.image_size, Random(f"test {said}")) for said in captions]
    result: dict[str, Any] = {"captions": len(captions), "held_out": len(held_out)}
    for place, (part, judge) in enumerate(_JUDGES.items(), start=1):
        verbalizer = _build_judge(*judge)
        result[f"judge: {part}"] = f"{verbalizer.kind}/{verbalizer.backend}"
        wanted = [said[place] for said in captions]
        for name, images in (("drawn", drawn), ("scenes", painted)):
            names = _look(verbalizer, images, config.sheet)
            result[f"{name}: {part}"] = count_found(wanted, names, config.sheet.num_shuffles)
            alone = count_found(wanted[: len(held_out)], names[: len(held_out)], config.sheet.num_shuffles)
            result[f"{name}: {part}, held out"] = alone
    _write_sheet([write_caption(*said) for said in captions], drawn, len(held_out), out / "sheet.png")
    write_json(out / "result.json", result)
    print(json.dumps(result, indent=1), flush=True)
    return result


def count_found(wanted: Sequence[str], found: Sequence[Sequence[str]], num_shuffles: int) -> dict[str, Any]:
    """How often a name is found in its own image, and how often in another's.

    Args:
        wanted: A name per image.
        found: Names per image.
        num_shuffles: Random orders of ``wanted``.

    Returns:
        ``share`` with Wilson's interval, ``shuffled``: its mean over random orders, and ``p``: in how many orders it is
        at least as high, one counted in addition.
    """
    right = sum(name in names for name, names in zip(wanted, found, strict=True))
    rng, others = Random(0), list(wanted)
    counts = []
    for _ in range(num_shuffles):
        rng.shuffle(others)
        counts.append(sum(name in names for name, names in zip(others, found, strict=True)))
    total = len(wanted)
    return {
        "share": right / total,
        "interval": wilson_interval(right, total),
        "shuffled": float(np.mean(counts)) / total,
        "p": (1 + sum(count >= right for count in counts)) / (1 + num_shuffles),
    }


def _draw_all(
    captions: Sequence[tuple[str, str, str]], checkpoint: Path, chosen: SheetSettings, folder: Path
) -> list[Image.Image]:
    """Drawings, each kept in a file as soon as it is there."""
    folder.mkdir(exist_ok=True)
    pipeline = None
    images = []
    for number, said in enumerate(captions):
        caption = write_caption(*said)
        file = folder / f"{caption.replace(' ', '_')}.png"
        if not file.is_file():
            pipeline = pipeline or Pipeline.from_pretrained(checkpoint, [])
            (drawing,) = pipeline.draw(caption, {"seed": number} | chosen.options).parts
            with atomic_file(file) as temporary:
                drawing.save(temporary, format="PNG")
        images.append(Image.open(file).convert("RGB"))
    return images


def _build_judge(kind: str, part: str) -> Verbalizer:
    stored = VerbalizerSettings.load(find_checkpoint("moai-nano"))
    (settings,) = (entry["settings"] for entry in stored.verbalizers or () if entry["kind"] == kind)
    return build_verbalizer(kind, **settings[part].get("detector", settings[part]))  # NanoDet, without other names


def _look(judge: Verbalizer, images: Sequence[Image.Image], chosen: SheetSettings) -> list[tuple[str, ...]]:
    size = (chosen.image_size, chosen.image_size)
    enlarged = [np.array(image.resize(size, Image.Resampling.BICUBIC)) for image in images]
    return [tuple(findings.class_names) for findings in judge.predict(enlarged)]


def _write_sheet(captions: Sequence[str], images: Sequence[Image.Image], num_held_out: int, file: Path) -> None:
    """Images with their captions under them, in a grid; captions that were never learned are red."""
    rows = -(-len(images) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * (_SIDE + 4) + 4, rows * (_SIDE + _LABEL + 4) + 4), (255, 255, 255))
    draw, font = ImageDraw.Draw(sheet), load_font(0, 10)
    for number, (caption, image) in enumerate(zip(captions, images, strict=True)):
        x, y = 4 + number % _COLUMNS * (_SIDE + 4), 4 + number // _COLUMNS * (_SIDE + _LABEL + 4)
        sheet.paste(image.resize((_SIDE, _SIDE), Image.Resampling.NEAREST), (x, y))
        ink = (200, 30, 30) if number < num_held_out else (28, 30, 36)
        draw.multiline_text((x, y + _SIDE + 1), "\n".join(textwrap.wrap(caption, 19)), ink, font, spacing=1)
    with atomic_file(file) as temporary:
        sheet.quantize(256).save(temporary, format="PNG", optimize=True)
