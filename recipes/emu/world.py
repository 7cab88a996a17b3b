"""Small Scenes with one thing in them, and captions that say its colour and what it stands on."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from random import Random

from PIL import Image

from moai.scenes.asset_loading import sprite_image
from moai.scenes.layout import PlacedObject, SceneLayout, sample_layout
from moai.scenes.rendering import render_scene
from verbalizers.core.durable_files import atomic_folder

from .config import WorldSettings

__all__ = ["CAPTIONS_FILE", "DOCUMENTS_FILE", "draw_world", "list_captions", "write_world"]

#: Rows for ``moai train``: documents; and images with their captions.
DOCUMENTS_FILE, CAPTIONS_FILE = "documents.jsonl", "captions.jsonl"
#: Sceneries that end with a ground.
_SCENERIES = {"grass": "meadow", "sand": "desert", "snow": "snowfield", "road": "street"}


def list_captions(world: WorldSettings) -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    """Colour, thing and ground of the captions that are learned, and of those that are not.

    Those that are not learned are spread: each colour, thing and ground is learned in other captions.
    """
    every = list(product(world.colours, world.things, world.grounds))
    Random(0).shuffle(every)
    held_out = every[:: world.held_out]
    return [one for one in every if one not in held_out], held_out


def write_caption(colour: str, thing: str, ground: str) -> str:
    """``a red car on grass``."""
    return f"a {colour} {thing} on {ground}"


def draw_world(colour: str, thing: str, ground: str, image_size: int, rng: Random) -> Image.Image:
    """An image of one caption.

    Args:
        colour: Of :data:`moai.scenes.vocabulary.COLOURS`.
        thing: Name of an object.
        ground: What it stands on.
        image_size: In pixels.
        rng: Decides place, size, light and scenery.
    """
    while True:
        scenery = sample_layout(rng, (0, 0), 0.0, scenery=_SCENERIES[ground])
        names = [region.name for region in scenery.stuff]
        if ground in names and names[0] == "sky" and set(names) <= {"sky", "mountain", ground}:
            break
    sprite = sprite_image(thing, 0)
    unit = rng.uniform(0.5, 0.62) / max(sprite.size)
    width, height = sprite.width * unit, sprite.height * unit
    left, base = rng.uniform(0.35, 0.65) - width / 2, rng.uniform(0.78, 0.92)
    box = (left, base - height, left + width, base)
    placed = PlacedObject(thing, 0, box, False, True, colour=colour)
    layout = SceneLayout(scenery.scenery, scenery.stuff, (placed,), (), scenery.texture_seed)
    return Image.fromarray(render_scene(layout, image_size))


def write_world(world: WorldSettings, folder: Path, seed: int) -> None:
    """Write images, documents and captions to a folder, once."""
    if folder.is_dir():
        return
    learned, _ = list_captions(world)
    with atomic_folder(folder) as temporary:
        documents, captions = [], []
        for number in range(world.num_images):
            rng = Random(f"{seed} {number}")
            said, name = learned[number % len(learned)], f"{number:05d}.png"
            draw_world(*said, world.image_size, rng).save(temporary / name)
            text = {"type": "text", "text": write_caption(*said)}
            for parts in ([{"type": "image"}, text], [text, {"type": "image"}]):
                documents.append({"images": [name], "messages": [{"role": "assistant", "content": parts}]})
            captions.append({"image": name, "caption": text["text"]})
        for file, rows in ((DOCUMENTS_FILE, documents), (CAPTIONS_FILE, captions)):
            (temporary / file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
