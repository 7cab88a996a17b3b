"""Painted scenes show what their truth says."""

import time

import numpy as np
import pytest
from PIL import Image, ImageDraw

from moai.scenes.asset_loading import FONT_FILES, load_font, sprite_boxes, sprite_mask, text_extent
from moai.scenes.rendering import render_scene
from moai.scenes.scenes import Scenes
from moai.scenes.textures import STUFF_TEXTURES, paint_texture
from moai.scenes.vocabulary import STUFF_NAMES


def test_image_is_rgb_of_the_asked_size_when_painted():
    for size in (48, 131):
        image = Scenes(image_size=size)[0].image
        assert image.shape == (size, size, 3)
        assert image.dtype == np.uint8
        assert image.std() > 10


def test_image_is_the_same_when_painted_again():
    layout = Scenes(image_size=96)[4].layout
    assert np.array_equal(render_scene(layout, 96), render_scene(layout, 96))


def test_pixels_change_only_at_the_object_and_its_shadow_when_an_object_is_taken_away():
    from dataclasses import replace

    scenes, checked = Scenes(image_size=128, sign_probability=0.0), 0
    for index in range(40):
        sample = scenes[index]
        layout = sample.layout
        if not layout.objects:
            continue
        # The front-most object: nothing covers it, and later draws from the painter's generator do not shift.
        without = replace(layout, objects=layout.objects[:-1], relations=())
        entity = len(layout.stuff) + len(layout.objects)
        shown = sample.entities.entity_map == entity
        difference = np.abs(_unfinished(layout) - _unfinished(without)).max(axis=2)
        assert (difference[shown] > 3).mean() > 0.75, sample.layout.objects[-1].name
        if not layout.objects[-1].has_shadow and layout.objects[-1].name not in ("light", "lantern"):
            x0, y0, x1, y1 = sample.entities.boxes_xyxy[entity - 1].astype(int)
            difference[max(y0 - 3, 0) : y1 + 3, max(x0 - 3, 0) : x1 + 3] = 0
            assert difference.max() == 0
            checked += 1
    assert checked >= 3


def _unfinished(layout):
    """The image before light and noise, which differ wherever the number of objects differs."""
    from unittest import mock

    with mock.patch("moai.scenes.rendering._finish", lambda canvas, rng, size: np.asarray(canvas)):
        return render_scene(layout, 128).astype(np.int32)


def test_ink_lies_inside_the_quads_when_a_sign_is_painted():
    signs = 0
    for sample in Scenes(image_size=448, length=14, sign_probability=1.0, num_objects=(1, 1)):
        image = sample.image.astype(np.float32)
        for placed in sample.layout.objects:
            if placed.sign is None:
                continue
            sign = placed.sign
            ink, board = np.float32(sign.ink_colour), np.float32(sign.board_colour)
            is_ink = np.abs(image - ink).sum(2) < np.abs(image - board).sum(2)
            for quad in sign.quads:
                points = np.array(quad) * 448
                if sign.angle:
                    continue
                (x0, y0), (x1, y1) = points.min(0), points.max(0)
                inside = is_ink[round(y0) : round(y1), round(x0) : round(x1)]
                assert 0.12 < inside.mean() < 0.85
                assert inside[:, :3].any() and inside[:, -3:].any() and inside[:3].any() and inside[-3:].any()
                above = is_ink[round(y0) - 4 : round(y0) - 2, round(x0) : round(x1)]
                assert above.mean() < 0.1
                signs += 1
    assert signs >= 5


@pytest.mark.parametrize("name", STUFF_NAMES)
def test_texture_covers_its_area_when_painted_for_a_stuff_class(name):
    texture = paint_texture(name, 7, 40, 64, 64)
    assert texture.shape == (40, 64, 3)
    assert np.isfinite(texture).all()
    assert texture.std() > 0.5
    assert np.array_equal(texture, paint_texture(name, 7, 40, 64, 64))
    assert not np.array_equal(texture, paint_texture(name, 8, 40, 64, 64))
    assert set(STUFF_TEXTURES) == set(STUFF_NAMES)


def test_sprites_are_cropped_tightly_when_read_from_the_sheet():
    for name, boxes in sprite_boxes().items():
        for index in range(len(boxes)):
            mask = sprite_mask(name, index)
            assert mask.mean() > 0.05, name
            assert mask[0].any() and mask[-1].any() and mask[:, 0].any() and mask[:, -1].any(), name


def test_text_extent_scales_with_the_font_when_measured():
    for index in range(len(FONT_FILES)):
        left, top, right, bottom = text_extent("HOTEL", index)
        assert 1.2 < right - left < 4 and 0.4 < bottom - top < 1.2
        paper = Image.new("L", (600, 200))
        ImageDraw.Draw(paper).text((50, 120), "HOTEL", 255, load_font(index, 100), anchor="ls")
        expected = [50 + 100 * left, 120 + 100 * top, 50 + 100 * right, 120 + 100 * bottom]
        assert np.abs(np.subtract(paper.getbbox(), expected)).max() < 3


def test_truth_without_pixels_is_fast_when_a_decoder_trains_on_text():
    scenes = Scenes(image_size=128)
    _ = [scenes[index] for index in range(20)]
    start = time.process_time()
    for index in range(100, 200):
        _ = scenes[index]
    # About 1.7 ms on an idle core; a wide margin, because the clock of a busy machine is not to be trusted.
    assert (time.process_time() - start) / 100 < 0.02
