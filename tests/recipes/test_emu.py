"""The tiny Emu's recipe: its captions and images, and how drawings are counted."""

from pathlib import Path
from random import Random

import numpy as np

from recipes.emu.config import load_tiny_config
from recipes.emu.sheet import count_found
from recipes.emu.world import draw_world, list_captions

ROOT = Path(__file__).resolve().parents[2]


def test_held_out_captions_are_never_learned_and_each_of_their_words_is() -> None:
    world = load_tiny_config(ROOT / "configs" / "emu_tiny.yaml").world
    learned, held_out = list_captions(world)
    assert len(learned) == 64 and len(held_out) == 8 and not set(learned) & set(held_out)
    for place in range(3):
        assert {said[place] for said in held_out} <= {said[place] for said in learned}


def test_images_have_their_thing_in_its_colour() -> None:
    red, blue = (
        np.asarray(draw_world(colour, "car", "grass", 64, Random(3))).astype(int) for colour in ("red", "blue")
    )
    changed = np.abs(red - blue).sum(axis=2) > 60
    assert 0.05 < changed.mean() < 0.4
    assert (red - blue)[changed][:, 0].mean() > 60 > -60 > (red - blue)[changed][:, 2].mean()


def test_names_are_counted_against_shuffled_captions() -> None:
    found = [("car", "sky"), ("bus",), ("car",), ()]
    result = count_found(["car", "bus", "car", "bus"], found, 400)
    assert result["share"] == 0.75 and result["interval"][0] < 0.75 < result["interval"][1]
    assert 0.3 < result["shuffled"] < 0.45 and 0 < result["p"] < 0.5
