"""Procedural textures for stuff: each makes float32 (height, width, 3) RGB in [0, 255] from a seeded generator."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["STUFF_TEXTURES", "nameless_image", "paint_texture", "smooth_noise"]

Colour = tuple[int, int, int]


def smooth_noise(rng: np.random.Generator, height: int, width: int, rows: float, columns: float) -> np.ndarray:
    """float32 (height, width) noise in about +-1: random values on a grid of rows x columns, smoothed between."""
    shape = max(2, round(rows) + 1), max(2, round(columns) + 1)
    grid = Image.fromarray(rng.random(shape, dtype=np.float32) * 2 - 1)
    return np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))


def nameless_image(rng: np.random.Generator, size: int) -> np.ndarray:
    """float32 (size, size, 3) RGB: noise whose amplitudes fall with frequency f about as photographs' do, as 1 / f^a.

    Half of the images have few tones, and so edges. That photographs have a near 1: Field, Relations between the
    statistics of natural images and the response properties of cortical cells, J. Opt. Soc. Am. A 4 (1987).
    """
    frequencies = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]) * size
    amplitudes = 1 / np.maximum(frequencies, 1) ** rng.uniform(0.8, 2.4)
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((3, size, size))) * amplitudes, (size, size))
    noise /= noise.std(axis=(1, 2), keepdims=True)
    if rng.random() < 0.5:
        tone = rng.uniform(0.4, 1.5)
        noise = np.round(noise / tone) * tone
    mixed = np.tensordot(1 + 0.4 * rng.standard_normal((3, 3)), noise, 1)  # light in all channels, and some colour
    image = rng.uniform(40, 215, (3, 1, 1)) + rng.uniform(10, 45) * mixed
    return np.moveaxis(image, 0, 2).astype(np.float32)


def _recede(texture: np.ndarray) -> np.ndarray:
    """Resample rows so that a flat ground's texture gets finer towards its upper edge, as in perspective."""
    height = texture.shape[0]
    t = np.linspace(0, 1, height, dtype=np.float32)
    rows = (1 - 1 / (1 + 2.5 * t)) / (1 - 1 / 3.5) * (height - 1)
    return texture[rows.astype(np.int64)]


@dataclass(frozen=True, slots=True)
class _Recipe:
    """Base colours (one is drawn), brightness at top and bottom, noise layers (rows, columns, amplitude) per unit."""

    colours: tuple[Colour, ...]
    shade: tuple[float, float]
    layers: tuple[tuple[float, float, float], ...]
    grain: float
    is_ground: bool = True
    detail: Callable[[np.ndarray, np.random.Generator, float, Colour], np.ndarray] | None = None


def _lines(texture: np.ndarray, paint: Callable[[ImageDraw.ImageDraw], None]) -> np.ndarray:
    image = Image.fromarray(np.clip(texture, 0, 255).astype(np.uint8))
    paint(ImageDraw.Draw(image))
    return np.asarray(image).astype(np.float32)


def _shift(colour: Colour, amount: float) -> Colour:
    return tuple(int(min(max(c + amount, 0), 255)) for c in colour)


def _tufts(texture: np.ndarray, rng: np.random.Generator, size: float, colour: Colour) -> np.ndarray:
    """Blades of grass, longer in front."""
    height, width = texture.shape[:2]
    spots = rng.random((int(90 * height / size) + 8, 4))

    def paint(draw: ImageDraw.ImageDraw) -> None:
        for x, y, lean, tone in spots.tolist():
            length = size * (0.008 + 0.022 * y)
            x, y = x * width, y * height
            tip = (x + (lean - 0.5) * length, y - length)
            draw.line([(x, y), tip], _shift(colour, 70 * tone - 42), max(1, round(size / 300)))
            draw.line(
                [(x + 0.4 * length, y), (tip[0] + 0.7 * length, tip[1] + 0.3 * length)], _shift(colour, 50 * tone - 34)
            )

    return _lines(texture, paint)


def _pebbles(texture: np.ndarray, rng: np.random.Generator, size: float, colour: Colour) -> np.ndarray:
    height, width = texture.shape[:2]
    spots = rng.random((int(46 * height / size) + 4, 4))

    def paint(draw: ImageDraw.ImageDraw) -> None:
        for x, y, r, tone in spots.tolist():
            r = size * (0.002 + 0.008 * r * (0.3 + y))
            x, y = x * width, y * height
            draw.ellipse((x - 1.5 * r, y - 0.6 * r, x + 1.5 * r, y + 0.8 * r), _shift(colour, -48))
            draw.ellipse((x - 1.5 * r, y - r, x + 1.5 * r, y + 0.4 * r), _shift(colour, 60 * tone - 20))

    return _lines(texture, paint)


def _clouds(texture: np.ndarray, rng: np.random.Generator, size: float, colour: Colour) -> np.ndarray:
    height, width = texture.shape[:2]
    density = smooth_noise(rng, height, width, 5, 4) + 0.5 * smooth_noise(rng, height, width, 11, 8)
    density += 0.25 * smooth_noise(rng, height, width, 24, 17)
    cover = np.clip(density - rng.uniform(0.1, 0.8), 0, 0.7)[..., None]
    haze = np.linspace(0, 1, height, dtype=np.float32)[:, None, None] ** 2
    texture = texture + (np.float32(246) - texture) * 0.35 * haze
    return texture + (np.array([252, 251, 250], np.float32) - texture) * cover


def _waves(texture: np.ndarray, rng: np.random.Generator, size: float, colour: Colour) -> np.ndarray:
    height, width = texture.shape[:2]
    crests = _recede(smooth_noise(rng, height, width, 60 * height / size, 9))
    return texture + 60 * np.clip(crests - 0.35, 0, 1)[..., None]


def _bricks(texture: np.ndarray, rng: np.random.Generator, size: float, colour: Colour) -> np.ndarray:
    height, width = texture.shape[:2]
    step_y, step_x = size / 15, size / 7
    tones = rng.uniform(-20, 16, (17, 10))

    def paint(draw: ImageDraw.ImageDraw) -> None:
        for row in range(int(height / step_y) + 1):
            for column in range(-1, int(width / step_x) + 1):
                x, y = (column + 0.5 * (row % 2)) * step_x, row * step_y
                gap = max(1.0, size / 160)
                box = (x, y, x + step_x - gap, y + step_y - gap)
                draw.rectangle(box, _shift(colour, float(tones[row % 17, column % 10])))

    grain = texture - np.float32(colour)
    return _lines(np.full_like(texture, 200), paint) + 0.6 * grain


def _stripes(texture: np.ndarray, rng: np.random.Generator, size: float, colour: Colour) -> np.ndarray:
    period = rng.integers(9, 22)
    columns = np.arange(texture.shape[1]) * period / size
    return texture + (np.where(columns % 1.0 < 0.5, -10, 8).astype(np.float32))[None, :, None]


def _dado(texture: np.ndarray, rng: np.random.Generator, size: float, colour: Colour) -> np.ndarray:
    """Wooden panels side by side."""
    columns = (np.arange(texture.shape[1]) * 9 / size) % 1.0
    groove = np.where(columns < 0.05, -38, np.where(columns < 0.1, 16, 0)).astype(np.float32)
    return texture + groove[None, :, None]


_WALL_DETAILS = (None, None, _stripes, _bricks, _dado)


def _wall(texture: np.ndarray, rng: np.random.Generator, size: float, colour: Colour) -> np.ndarray:
    detail = _WALL_DETAILS[rng.integers(len(_WALL_DETAILS))]
    return texture if detail is None else detail(texture, rng, size, colour)


def _perspective_grid(rng: np.random.Generator, height: int, width: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Column and row coordinates of a floor's tiles at each pixel."""
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None, :]
    depth = 1 / (0.45 + 0.75 * y)
    return x * depth * columns + 0.25, depth * columns * 0.9 + np.zeros_like(x)


def _planks(texture: np.ndarray, rng: np.random.Generator, size: float, colour: Colour) -> np.ndarray:
    across, along = _perspective_grid(rng, *texture.shape[:2], columns=8)
    number = np.floor(across).astype(np.int64)
    tones = rng.uniform(-16, 16, 64).astype(np.float32)
    ends = (np.floor(along * 0.35 + tones[number % 64])).astype(np.int64)
    texture = texture + tones[(number * 7 + ends * 13) % 64][..., None]
    return texture - 34 * ((across % 1.0) < 0.045)[..., None]


def _tiles(texture: np.ndarray, rng: np.random.Generator, size: float, colour: Colour) -> np.ndarray:
    across, along = _perspective_grid(rng, *texture.shape[:2], columns=int(rng.integers(5, 9)))
    checker = ((np.floor(across) + np.floor(along)) % 2).astype(np.float32)
    joint = (((across % 1.0) < 0.06) | ((along % 1.0) < 0.08)).astype(np.float32)
    return texture + (rng.uniform(4, 34) * (checker - 0.5) - 20 * joint)[..., None]


def _floor(texture: np.ndarray, rng: np.random.Generator, size: float, colour: Colour) -> np.ndarray:
    return (_planks if rng.random() < 0.6 else _tiles)(texture, rng, size, colour)


def _mowing(texture: np.ndarray, rng: np.random.Generator, size: float, colour: Colour) -> np.ndarray:
    across, _ = _perspective_grid(rng, *texture.shape[:2], columns=7)
    texture = texture + np.where(np.floor(across) % 2 == 0, 9, -9).astype(np.float32)[..., None]
    height, width = texture.shape[:2]
    y, side = rng.uniform(0.15, 0.5) * height, rng.uniform(-0.1, 0.4) * width
    ink, thick = (236, 240, 232), max(1, round(size / 110))

    def paint(draw: ImageDraw.ImageDraw) -> None:
        draw.line([(0, y), (width, y)], ink, thick)
        draw.line([(side, y), (side - 0.35 * width, height)], ink, thick)

    return _lines(texture, paint)


def _sleepers(texture: np.ndarray, rng: np.random.Generator, size: float, colour: Colour) -> np.ndarray:
    height, width = texture.shape[:2]
    step = size / 16

    def paint(draw: ImageDraw.ImageDraw) -> None:
        for k in range(int(width / step) + 2):
            x = k * step
            draw.polygon(
                [(x, 0.16 * height), (x + 0.4 * step, 0.16 * height), (x + 0.2 * step, 0.9 * height)]
                + [(x - 0.3 * step, 0.9 * height)],
                (92, 66, 46),
            )
        for y in (0.3, 0.72):
            draw.rectangle((0, y * height, width, (y + 0.07) * height), (96, 102, 110))
            draw.rectangle((0, y * height, width, (y + 0.02) * height), (196, 202, 208))

    return _lines(texture, paint)


def _marks(texture: np.ndarray, rng: np.random.Generator, size: float, colour: Colour) -> np.ndarray:
    """Dashes along the middle of a road that crosses the image; roads into the depth are much taller."""
    height, width = texture.shape[:2]
    ink = (238, 236, 228) if rng.random() < 0.6 else (240, 204, 92)
    start = rng.uniform(-0.1, 0.05) * width

    def paint(draw: ImageDraw.ImageDraw) -> None:
        if height < 0.45 * size:
            for k in range(7):
                x = start + k * 0.18 * width
                draw.rectangle((x, 0.48 * height, x + 0.1 * width, 0.48 * height + 0.012 * size), ink)

    return _lines(texture, paint)


def _weave(texture: np.ndarray, rng: np.random.Generator, size: float, colour: Colour) -> np.ndarray:
    height, width = texture.shape[:2]
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    rings = (np.sqrt(x * x + y * y) * rng.integers(3, 6)).astype(np.float32) % 1.0
    return texture + np.where(rings < 0.35, 38, -6).astype(np.float32)[..., None]


def _veins(texture: np.ndarray, rng: np.random.Generator, size: float, colour: Colour) -> np.ndarray:
    height, width = texture.shape[:2]
    field = smooth_noise(rng, height, width, 4, 5) + 0.4 * smooth_noise(rng, height, width, 14, 14)
    texture = texture - 26 * np.exp(-((field / 0.05) ** 2))[..., None]
    edge = np.arange(height)[:, None, None] < 0.02 * size
    return texture + np.where(edge, 26, 0)


def _rocky(texture: np.ndarray, rng: np.random.Generator, size: float, colour: Colour) -> np.ndarray:
    height, width = texture.shape[:2]
    field = smooth_noise(rng, height, width, 9, 16) + 0.5 * smooth_noise(rng, height, width, 22, 40)
    texture = texture + 20 * np.sign(field)[..., None] * np.minimum(np.abs(field), 0.6)[..., None]
    line = np.arange(height)[:, None] + 0.06 * size * field
    snow = np.clip((rng.uniform(0.0, 0.14) * size - line) / (0.01 * size + 1), 0, 1)[..., None]
    return texture + (238 - texture) * 0.9 * snow


STUFF_TEXTURES: dict[str, _Recipe] = {
    "sky": _Recipe(
        ((112, 174, 232), (146, 196, 240), (90, 150, 220), (244, 178, 140), (168, 182, 200)),
        (0.92, 1.1),
        (),
        1.0,
        False,
        _clouds,
    ),
    "grass": _Recipe(
        ((98, 158, 66), (122, 168, 74), (76, 138, 62)), (0.94, 1.02), ((10, 8, 10), (60, 90, 12)), 7, True, _tufts
    ),
    "water": _Recipe(((64, 134, 178), (78, 150, 170), (70, 122, 160)), (1.12, 0.86), ((26, 6, 12),), 3, True, _waves),
    "sea": _Recipe(((38, 118, 172), (30, 140, 168), (52, 104, 150)), (0.92, 1.12), ((26, 5, 12),), 3, True, _waves),
    "river": _Recipe(((82, 154, 190), (92, 150, 160)), (1.05, 0.92), ((40, 5, 14),), 3, True, _waves),
    "road": _Recipe(((92, 94, 98), (106, 104, 102), (78, 80, 86)), (1.0, 0.95), ((8, 6, 5),), 9, True, _marks),
    "pavement": _Recipe(
        ((176, 172, 166), (190, 184, 172), (160, 162, 168)), (0.96, 1.04), ((10, 10, 5),), 6, True, _tiles
    ),
    "wall": _Recipe(
        ((226, 214, 190), (196, 214, 222), (216, 196, 196), (190, 208, 182), (178, 112, 88), (232, 230, 226)),
        (1.02, 0.92),
        ((4, 4, 5),),
        2.5,
        False,
        _wall,
    ),
    "floor": _Recipe(
        ((172, 124, 80), (146, 100, 64), (190, 152, 110), (186, 182, 176)), (0.9, 1.06), ((40, 10, 6),), 3, True, _floor
    ),
    "sand": _Recipe(
        ((228, 202, 150), (218, 186, 132), (236, 214, 170)), (0.98, 1.0), ((12, 8, 7), (70, 24, 6)), 7, True, _pebbles
    ),
    "snow": _Recipe(((238, 243, 250), (228, 236, 247)), (0.95, 1.02), ((12, 8, 8), (40, 20, 4)), 3, True),
    "mountain": _Recipe(
        ((128, 132, 146), (116, 134, 120), (150, 136, 124)), (1.05, 0.95), ((6, 10, 8),), 4, False, _rocky
    ),
    "dirt": _Recipe(((150, 112, 76), (134, 98, 68)), (0.95, 1.02), ((14, 10, 10), (60, 40, 8)), 9, True, _pebbles),
    "gravel": _Recipe(((158, 154, 148), (142, 136, 130)), (0.95, 1.02), ((70, 90, 14),), 22, True, _pebbles),
    "playingfield": _Recipe(
        ((84, 160, 78), (100, 170, 84), (186, 104, 70)), (0.96, 1.02), ((8, 8, 5),), 6, True, _mowing
    ),
    "railroad": _Recipe(((150, 138, 126),), (0.95, 1.0), ((70, 90, 12),), 20, False, _sleepers),
    "rug": _Recipe(
        ((166, 58, 62), (62, 88, 140), (104, 132, 96), (196, 150, 84)), (0.96, 1.04), ((12, 12, 5),), 7, False, _weave
    ),
    "counter": _Recipe(
        ((214, 208, 200), (184, 142, 100), (96, 98, 104), (232, 228, 222)), (0.92, 1.05), ((8, 6, 6),), 3, True, _veins
    ),
    "ceiling": _Recipe(((240, 238, 232), (228, 226, 222)), (1.0, 0.94), ((3, 3, 3),), 1.5, False),
}


def paint_texture(name: str, seed: int, height: int, width: int, image_size: int) -> np.ndarray:
    """Texture of a stuff class.

    Args:
        name: one of `STUFF_NAMES`.
        seed: same seed, same texture.
        height: rows to paint, in pixels.
        width: columns to paint, in pixels.
        image_size: side of the whole image in pixels; details scale with it.

    Returns:
        float32 (height, width, 3) RGB, not yet clipped to [0, 255].
    """
    recipe = STUFF_TEXTURES[name]
    rng = np.random.default_rng(seed)
    colour = recipe.colours[rng.integers(len(recipe.colours))]
    colour = tuple(int(c) for c in np.clip(np.float32(colour) + rng.uniform(-9, 9, 3), 0, 255))
    field = rng.standard_normal((height, width), dtype=np.float32) * recipe.grain
    for rows, columns, amplitude in recipe.layers:
        layer = smooth_noise(rng, height, width, rows * height / image_size, columns * width / image_size)
        field += amplitude * (_recede(layer) if recipe.is_ground else layer)
    shade = np.linspace(*recipe.shade, height, dtype=np.float32)[:, None, None]
    texture = np.float32(colour) * shade + field[..., None]
    if recipe.detail is not None:
        texture = recipe.detail(texture, rng, float(image_size), colour)
    return texture
