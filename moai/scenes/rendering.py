"""Paint a scene's layout: textured stuff, shadows, sprites and signs."""

import math

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance

from moai.scenes.asset_loading import load_font, sprite_image, text_extent
from moai.scenes.layout import PlacedObject, SceneLayout
from moai.scenes.signs import SignFace
from moai.scenes.textures import nameless_image, paint_texture, smooth_noise
from moai.scenes.truth import pixel_box, sign_polygons
from moai.scenes.vocabulary import OBJECT_CLASSES, PAINTS

__all__ = ["render_scene"]

_OVERSAMPLING = 2  # polygons and signs are drawn larger and averaged down, for smooth edges


def render_scene(layout: SceneLayout, image_size: int) -> np.ndarray:
    """Paint a scene.

    Args:
        layout: where everything is.
        image_size: height and width in pixels.

    Returns:
        uint8 (image_size, image_size, 3) RGB; the same layout gives the same pixels. Where there is nothing, half of
        the images have one colour, some under uneven light, and half show what nobody could name.
    """
    rng = np.random.default_rng(layout.texture_seed)
    if not layout.stuff and not layout.objects:
        plain = Image.new("RGB", (image_size, image_size), tuple(rng.integers(0, 256, 3).tolist()))
        draw = rng.random()
        if draw < 0.25:
            return np.asarray(plain)
        return _finish(plain if draw < 0.5 else _as_image(nameless_image(rng, image_size)), rng, image_size)
    canvas = _paint_stuff(layout, image_size)
    is_lit_from_left = rng.random() < 0.5
    for placed in layout.objects:
        if placed.has_shadow:
            _paint_shadow(canvas, placed, image_size, is_lit_from_left)
        if placed.sign is not None:
            _paint_sign(canvas, placed, image_size)
        else:
            _paint_sprite(canvas, placed, image_size, rng)
    return _finish(canvas, rng, image_size)


def _polygon_mask(polygons: list[tuple[tuple[float, float], ...]], image_size: int) -> Image.Image:
    scale = image_size * _OVERSAMPLING
    mask = Image.new("L", (scale, scale))
    draw = ImageDraw.Draw(mask)
    for polygon in polygons:
        draw.polygon([(x * scale, y * scale) for x, y in polygon], 255)
    return mask.reduce(_OVERSAMPLING)


def _as_image(texture: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(texture, 0, 255).astype(np.uint8))


def _paint_stuff(layout: SceneLayout, image_size: int) -> Image.Image:
    canvas = Image.new("RGB", (image_size, image_size))
    for index, region in enumerate(layout.stuff):
        x0, y0, x1, y1 = pixel_box(region.bounds(), image_size)
        y1 = min(y1, image_size)
        texture = paint_texture(region.name, region.texture_seed, y1 - y0, x1 - x0, image_size)
        if region.colour:
            grey = np.asarray(_as_image(texture).convert("L"), dtype=np.float32)
            texture = _in_colour(grey, float(np.median(grey)), region.shade)
        if index == 0:
            canvas.paste(_as_image(texture), (x0, y0))
            continue
        mask = _polygon_mask([region.polygon], image_size)
        if layout.stuff[0].name == "wall" and region.name in ("floor", "counter"):
            # Where wall and floor meet it is darker, and a skirting board runs along.
            depth = max(1, round(0.012 * image_size))
            ImageDraw.Draw(canvas).rectangle((0, y0 - depth, image_size, y0), (232, 226, 216))
            fade = np.clip(np.arange(y1 - y0, dtype=np.float32) / (0.06 * image_size), 0, 1)
            texture = texture * (0.78 + 0.22 * fade)[:, None, None]
        elif region.name in ("rug",):
            _darken(canvas, mask, 0.35, (0, max(1, image_size // 120)))
        canvas.paste(_as_image(texture), (x0, y0), mask.crop((x0, y0, x1, y1)))
    return canvas


def _darken(canvas: Image.Image, mask: Image.Image, strength: float, offset: tuple[int, int]) -> None:
    shifted = ImageChops.offset(mask, *offset).point(lambda value: int(value * strength))
    canvas.paste((18, 20, 28), (0, 0), shifted)


def _soft_ellipse(width: int, height: int, strength: float) -> Image.Image:
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    falloff = np.clip(1.15 - x * x - y * y, 0, 1) ** 0.8
    return Image.fromarray((255 * strength * np.minimum(falloff, 1)).astype(np.uint8))


def _paint_shadow(canvas: Image.Image, placed: PlacedObject, image_size: int, is_lit_from_left: bool) -> None:
    x0, y0, x1, y1 = placed.box
    group = OBJECT_CLASSES[placed.name].group
    share = {"tree": 0.55, "sign": 0.22}.get(group, 0.98)
    width = share * (x1 - x0)
    height = min(0.16 * width, 0.22 * (y1 - y0))
    centre = 0.5 * (x0 + x1) + (0.12 if is_lit_from_left else -0.12) * width
    w, h = max(3, round(1.25 * width * image_size)), max(3, round(1.5 * height * image_size))
    shadow = _soft_ellipse(w, h, 0.45)
    corner = round(centre * image_size - 0.5 * w), round((y1 - 0.012) * image_size - 0.5 * h)
    canvas.paste((16, 18, 26), corner, shadow)


def _sharpened_alpha(alpha: Image.Image, gain: float) -> Image.Image:
    return alpha.point([int(min(max((value - 128) * gain + 128, 0), 255)) for value in range(256)])


def _paint_sprite(canvas: Image.Image, placed: PlacedObject, image_size: int, rng: np.random.Generator) -> None:
    brightness, colour = rng.uniform(0.88, 1.08), rng.uniform(0.85, 1.1)
    x0, y0, x1, y1 = pixel_box(placed.box, image_size)
    source = sprite_image(placed.name, placed.sprite)
    size = x1 - x0, y1 - y0
    enlargement = max(size[0] / source.width, size[1] / source.height)
    method = Image.Resampling.BICUBIC if enlargement > 1 else Image.Resampling.BOX
    sprite = source.resize(size, method)
    if placed.flipped:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    alpha = sprite.getchannel("A")
    if enlargement > 1:  # enlarging blurs the outline: steepen it again
        alpha = _sharpened_alpha(alpha, min(enlargement, 3.0))
    pixels = sprite.convert("RGB")
    if placed.colour:
        pixels = _painted(pixels, alpha, placed.shade or PAINTS[placed.colour])
    pixels = ImageEnhance.Brightness(pixels).enhance(brightness)
    if image_size >= 256:
        pixels = ImageEnhance.Color(pixels).enhance(colour)
    if OBJECT_CLASSES[placed.name].group == "hanging":
        _paint_cord(canvas, (x0 + x1) / 2, y0, image_size)
    canvas.paste(pixels, (x0, y0), alpha)


def _painted(pixels: Image.Image, alpha: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """The sprite in one colour: its light and shade around the colour's own."""
    grey = np.asarray(pixels.convert("L"), dtype=np.float32)
    shown = np.asarray(alpha) > 127
    return _as_image(_in_colour(grey, float(np.median(grey[shown])) if shown.any() else 128.0, colour))


def _in_colour(grey: np.ndarray, middle: float, colour: tuple[int, int, int]) -> np.ndarray:
    shade = np.clip((grey - middle) / 128.0, -0.6, 0.6)[..., None]
    paint = np.array(colour, np.float32)
    return np.where(shade < 0, paint * (1 + shade), paint + (255 - paint) * 0.5 * shade)


def _paint_cord(canvas: Image.Image, x: float, y: float, image_size: int) -> None:
    top = y - 0.05 * image_size
    ImageDraw.Draw(canvas).line([(x, top), (x, y + 2)], (60, 54, 50), max(1, round(image_size / 160)))


def _paint_sign(canvas: Image.Image, placed: PlacedObject, image_size: int) -> None:
    sign = placed.sign
    if sign.on_post:
        post = _polygon_mask(sign_polygons(placed)[:1], image_size)
        canvas.paste((112, 84, 58), (0, 0), post)
    face, scale = _draw_face(sign, image_size), image_size
    centre_x = 0.25 * sum(x for x, _ in sign.board) * scale
    centre_y = 0.25 * sum(y for _, y in sign.board) * scale
    if sign.angle:
        face = face.rotate(-math.degrees(sign.angle), Image.Resampling.BICUBIC, expand=True)
    # Place at sub-pixel precision: paste the enlarged face on an enlarged clear patch, then average down.
    left, top = centre_x - 0.5 * face.width / _OVERSAMPLING, centre_y - 0.5 * face.height / _OVERSAMPLING
    x0, y0 = math.floor(left), math.floor(top)
    patch_size = [math.ceil(length / _OVERSAMPLING + 1) * _OVERSAMPLING for length in face.size]
    patch = Image.new("RGBA", patch_size, (*sign.board_colour, 0))
    patch.paste(face, (round((left - x0) * _OVERSAMPLING), round((top - y0) * _OVERSAMPLING)))
    patch = patch.resize([length // _OVERSAMPLING for length in patch_size], Image.Resampling.BOX)
    if not sign.on_post:
        _darken_behind(canvas, patch.getchannel("A"), (x0, y0), image_size)
    canvas.paste(patch.convert("RGB"), (x0, y0), patch.getchannel("A"))


def _darken_behind(canvas: Image.Image, alpha: Image.Image, corner: tuple[int, int], image_size: int) -> None:
    step = max(1, image_size // 110)
    canvas.paste((20, 20, 26), (corner[0] + step, corner[1] + step), alpha.point(lambda value: int(0.4 * value)))


def _draw_face(sign: SignFace, image_size: int) -> Image.Image:
    """The board upright, `_OVERSAMPLING` times larger, with border and words."""
    scale = image_size * _OVERSAMPLING
    (ax, ay), (bx, by), _, (dx, dy) = sign.board
    width, height = math.hypot(bx - ax, by - ay) * scale, math.hypot(dx - ax, dy - ay) * scale
    face = Image.new("RGBA", (max(2, round(width)), max(2, round(height))), (*sign.board_colour, 0))
    draw = ImageDraw.Draw(face)
    border = max(1, round(0.05 * sign.font_size * scale))
    draw.rounded_rectangle(
        (0, 0, face.width - 1, face.height - 1), 3 * border, sign.board_colour, sign.ink_colour, border
    )
    font = load_font(sign.font_index, max(4, round(sign.font_size * scale)))
    centre_x, centre_y = 0.25 * sum(x for x, _ in sign.board), 0.25 * sum(y for _, y in sign.board)
    cos, sin = math.cos(-sign.angle), math.sin(-sign.angle)
    for text, quad in zip(sign.lines, sign.quads, strict=True):
        x, y = (0.25 * sum(point[k] for point in quad) - c for k, c in ((0, centre_x), (1, centre_y)))
        x, y = cos * x - sin * y, sin * x + cos * y
        left, top, right, bottom = (value * font.size for value in text_extent(text, sign.font_index))
        pen = 0.5 * width + x * scale - 0.5 * (left + right), 0.5 * height + y * scale - 0.5 * (top + bottom)
        draw.text(pen, text, sign.ink_colour, font, anchor="ls")
    return face


def _finish(canvas: Image.Image, rng: np.random.Generator, image_size: int) -> np.ndarray:
    """Uneven light, a slight tint and sensor noise over everything, so that sprites and textures share one light."""
    pixels = np.asarray(canvas).astype(np.float32)
    light = 1 + 0.06 * smooth_noise(rng, image_size, image_size, 2, 2)
    tint = rng.uniform(0.96, 1.03, 3).astype(np.float32) * np.float32(rng.uniform(0.9, 1.04))
    pixels = pixels * light[..., None] * tint
    pixels += rng.standard_normal((image_size, image_size, 1), dtype=np.float32) * rng.uniform(0.5, 3.0)
    return np.clip(pixels, 0, 255).astype(np.uint8)
