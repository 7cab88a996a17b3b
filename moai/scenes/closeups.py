"""Scenes seen from nearer, as photographs show things: one of them fills a quarter of its side or more."""

from collections.abc import Sequence
from colorsys import hsv_to_rgb
from dataclasses import dataclass, replace
from random import Random

from moai.scenes.layout import PlacedObject, SceneLayout
from moai.scenes.vocabulary import PAINTS

__all__ = ["Closeup", "paint_things", "sample_closeup"]

_LARGEST, _SMALLEST = 0.9, 0.2  # sides of what is shown, in parts of the scene
_FILLED = (0.25, 1.05)
_CUT = 0.15  # of a thing's side may lie outside
_VISIBLE = 0.6  # of another thing, or nothing of it: of less nobody could say what it is
_ATTEMPTS = 12
_PAINTED, _PAINTED_GROUNDS = 0.6, 0.3
_CHOICES = 3  # that one is taken of
# What people call by the names of colours: hues in degrees, saturations and values (HSV). Paint is strong; skies, fur,
# skins and leaves are paler or darker, which the second row of a colour is for.
_SHADES: dict[str, tuple[tuple[tuple[float, float], ...], ...]] = {
    "red": (((346, 364), (0.65, 1), (0.45, 0.95)),),
    "orange": (((20, 34), (0.75, 1), (0.82, 1)), ((20, 32), (0.68, 0.95), (0.72, 0.84))),
    "yellow": (((46, 60), (0.5, 1), (0.8, 1)),),
    "green": (((80, 160), (0.35, 1), (0.25, 0.8)), ((72, 110), (0.4, 0.7), (0.3, 0.7))),
    "blue": (((205, 240), (0.45, 1), (0.35, 1)), ((200, 228), (0.26, 0.5), (0.72, 1))),
    "purple": (((268, 295), (0.4, 0.9), (0.35, 0.8)),),
    "pink": (((315, 352), (0.25, 0.5), (0.85, 1)),),
    "brown": (((18, 36), (0.4, 0.8), (0.22, 0.52)), ((18, 36), (0.32, 0.6), (0.3, 0.6))),
    "grey": (((0, 360), (0, 0.08), (0.38, 0.68)), ((0, 360), (0, 0.1), (0.34, 0.7))),
    "black": (((0, 360), (0, 0.25), (0.04, 0.16)),),
    "white": (((0, 360), (0, 0.05), (0.9, 1)), ((0, 360), (0, 0.08), (0.84, 1))),
}


@dataclass(frozen=True, slots=True)
class Closeup:
    """The square of a scene that its image shows.

    Attributes:
        x: its left edge, 0 = the scene's.
        y: its upper edge.
        side: its width and height, in parts of the scene.
    """

    x: float
    y: float
    side: float

    def inner_size(self, image_size: int) -> int:
        """Height and width in pixels of the whole scene."""
        return round(image_size / self.side)

    def corner(self, image_size: int) -> tuple[int, int]:
        """Pixels (x, y) of the scene's upper left corner in the image: none is positive."""
        scene = self.inner_size(image_size)
        x, y = (min(round(at * scene), scene - image_size) for at in (self.x, self.y))
        return -x, -y

    def visible_share(self, box: Sequence[float]) -> float:
        """Share of a box (x0, y0, x1, y1) of the unit square that is shown."""
        width = min(box[2], self.x + self.side) - max(box[0], self.x)
        height = min(box[3], self.y + self.side) - max(box[1], self.y)
        return max(width, 0.0) * max(height, 0.0) / ((box[2] - box[0]) * (box[3] - box[1]))

    def shows(self, placed: PlacedObject) -> bool:
        """Whether a thing is shown."""
        return self.visible_share(placed.box) > 0

    def shown_layout(self, layout: SceneLayout) -> SceneLayout:
        """What is shown of a layout, without its relations, whose numbers would be others."""
        return replace(layout, objects=tuple(filter(self.shows, layout.objects)), relations=())


def sample_closeup(rng: Random, layout: SceneLayout) -> Closeup | None:
    """Draw a part of a scene in which one of its things is large and no other is in doubt; None where none was found.

    Of some such parts the one that shows most things: photographs seldom show one alone.

    Args:
        rng: source of randomness.
        layout: the scene, without signs.
    """
    found: list[tuple[int, Closeup]] = []
    for _ in range(_ATTEMPTS if layout.objects else 0):
        box = rng.choice(layout.objects).box
        width, height = box[2] - box[0], box[3] - box[1]
        side = max(max(width, height) / rng.uniform(*_FILLED), _SMALLEST)
        if side > _LARGEST:
            continue
        lows = (box[2] - side - _CUT * width, box[3] - side - _CUT * height)
        highs = (box[0] + _CUT * width, box[1] + _CUT * height)
        edges = (rng.uniform(low, high) for low, high in zip(lows, highs, strict=True))
        x, y = (min(max(edge, 0.0), 1 - side) for edge in edges)
        closeup = Closeup(x, y, side)
        shares = [closeup.visible_share(placed.box) for placed in layout.objects]
        if closeup.visible_share(box) >= _VISIBLE and all(s == 0 or s >= _VISIBLE for s in shares):
            found.append((sum(share > 0 for share in shares), closeup))
        if len(found) == _CHOICES:
            break
    return max(found, key=lambda one: one[0])[1] if found else None


def _sample_shade(rng: Random, colour: str) -> tuple[int, int, int]:
    rows = _SHADES[colour]
    chosen, along = divmod(rng.random() * len(rows), 1)
    (low, high), *others = rows[int(chosen)]
    hue, saturation, value = low + (high - low) * along, *(rng.uniform(*span) for span in others)
    return tuple(round(255 * part) for part in hsv_to_rgb(hue / 360 % 1, saturation, value))


def paint_things(rng: Random, layout: SceneLayout) -> SceneLayout:
    """Paint some of a scene's things, but for people and signs, and grounds in more colours than whole scenes have."""
    objects = []
    for placed in layout.objects:
        colour = placed.colour
        if placed.name not in ("person", "sign") and rng.random() < _PAINTED:
            colour = rng.choice(tuple(PAINTS))
        objects.append(replace(placed, colour=colour, shade=_sample_shade(rng, colour) if colour else None))
    grounds = []
    for region in layout.stuff:
        if rng.random() < _PAINTED_GROUNDS:
            colour = rng.choice(tuple(PAINTS))
            region = replace(region, colour=colour, shade=_sample_shade(rng, colour))
        grounds.append(region)
    return replace(layout, objects=tuple(objects), stuff=tuple(grounds))
