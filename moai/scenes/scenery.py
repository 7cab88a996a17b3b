"""Where scenes take place: stuff regions as polygons in the unit square, and what may stand on them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

__all__ = ["GROUND_PREDICATES", "SCENERIES", "ZONE_GROUPS", "Scenery", "StuffRegion", "sample_scenery", "stuff_at"]

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class StuffRegion:
    """A stuff segment: everything inside `polygon` that no later region or object covers.

    Attributes:
        name: one of `STUFF_NAMES`.
        polygon: corners (x, y) in the unit square, x right, y down; may reach outside the square.
        texture_seed: what the texture's randomness starts from.
        colour: one of `PAINTS` that it is painted in; "" = its texture's own.
        shade: of that colour, RGB.
    """

    name: str
    polygon: tuple[Point, ...]
    texture_seed: int
    colour: str = ""
    shade: tuple[int, int, int] = (0, 0, 0)

    def contains(self, x: float, y: float) -> bool:
        """Whether the point lies inside the polygon (even-odd rule)."""
        inside = False
        x0, y0 = self.polygon[-1]
        for x1, y1 in self.polygon:
            if (y0 > y) != (y1 > y) and x < (x1 - x0) * (y - y0) / (y1 - y0) + x0:
                inside = not inside
            x0, y0 = x1, y1
        return inside

    def bounds(self) -> tuple[float, float, float, float]:
        """Smallest box (x0, y0, x1, y1) around the polygon, cut to the unit square."""
        xs, ys = zip(*self.polygon, strict=True)
        return max(min(xs), 0.0), max(min(ys), 0.0), min(max(xs), 1.0), min(max(ys), 1.0)


@dataclass(frozen=True, slots=True)
class Scenery:
    """Stuff of one scene from back to front, and the height of its horizon (0 = top, 1 = bottom)."""

    name: str
    stuff: tuple[StuffRegion, ...]
    horizon: float


def stuff_at(stuff: tuple[StuffRegion, ...], x: float, y: float) -> int:
    """Index of the front-most region at a point; the first region covers the whole image."""
    for index in range(len(stuff) - 1, 0, -1):
        if stuff[index].contains(x, y):
            return index
    return 0


_WHOLE: tuple[Point, ...] = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))
_STEPS = 10


def _line(rng: Random, y: float, waviness: float) -> list[Point]:
    phase, turns = rng.uniform(0, math.tau), rng.uniform(0.6, 2.0)
    return [
        (x / _STEPS, y + waviness * math.sin(phase + turns * math.tau * x / _STEPS) + waviness * rng.uniform(-0.3, 0.3))
        for x in range(_STEPS + 1)
    ]


def _ground(rng: Random, y: float, waviness: float = 0.0) -> tuple[Point, ...]:
    return (*_line(rng, y, waviness), (1.0, 1.0), (0.0, 1.0))


def _ribbon(rng: Random, y0: float, y1: float, waviness: float = 0.01) -> tuple[Point, ...]:
    return (*_line(rng, y0, waviness), *reversed(_line(rng, y1, waviness)))


def _peaks(rng: Random, horizon: float) -> tuple[Point, ...]:
    points, x = [(-0.05, horizon + 0.02)], rng.uniform(-0.05, 0.1)
    while x < 1.0:
        half = rng.uniform(0.1, 0.22)
        points += [(x + half, horizon - rng.uniform(0.5, 1.6) * half), (x + 2 * half, horizon - rng.uniform(0, 0.03))]
        x += 2 * half
    return (*points, (1.05, horizon + 0.05), (-0.05, horizon + 0.05))


def _path(rng: Random, horizon: float) -> tuple[Point, ...]:
    far, near, half = rng.uniform(0.3, 0.7), rng.uniform(0.2, 0.8), rng.uniform(0.22, 0.36)
    return (far - 0.04, horizon), (far + 0.04, horizon), (near + half, 1.0), (near - half, 1.0)


def _oval(x: float, y: float, rx: float, ry: float) -> tuple[Point, ...]:
    angles = [k * math.tau / 24 for k in range(24)]
    return tuple((x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles)


_Regions = list[tuple[str, tuple[Point, ...]]]


def _open_air(
    rng: Random, ground: str, mountain: float, waviness: float = 0.015, paths: tuple[str, ...] = ()
) -> tuple[_Regions, float]:
    """Sky and ground; in two of three places that may have a path there is one, so that there are two grounds."""
    horizon = rng.uniform(0.36, 0.55)
    regions = [("sky", _WHOLE)]
    if rng.random() < mountain:
        regions.append(("mountain", _peaks(rng, horizon)))
    regions.append((ground, _ground(rng, horizon, waviness)))
    if paths and rng.random() < 2 / 3:
        regions.append((rng.choice(paths), _path(rng, horizon + 0.03)))
    return regions, horizon


def _meadow(rng: Random) -> tuple[_Regions, float]:
    regions, horizon = _open_air(rng, "grass", 0.4, paths=("dirt", "road", "gravel", "sand"))
    if len(regions) == 2 + any(name == "mountain" for name, _ in regions) and rng.random() < 0.5:
        top = rng.uniform(horizon + 0.1, 0.7)
        regions.append(("river", _ribbon(rng, top, top + rng.uniform(0.14, 0.2), 0.02)))
    return regions, horizon


def _street(rng: Random) -> tuple[_Regions, float]:
    horizon = rng.uniform(0.34, 0.48)
    regions = [("sky", _WHOLE)]
    if rng.random() < 0.5:
        regions.append(("grass", _ground(rng, horizon, 0.008)))
        horizon_of_pavement = horizon + rng.uniform(0.08, 0.14)
    else:
        horizon_of_pavement = horizon
    regions.append(("pavement", _ground(rng, horizon_of_pavement)))
    top = rng.uniform(horizon_of_pavement + 0.14, 0.74)
    regions.append(("road", _ribbon(rng, top, top + rng.uniform(0.2, 0.4), 0.0)))
    return regions, horizon


def _beach(rng: Random) -> tuple[_Regions, float]:
    horizon = rng.uniform(0.3, 0.42)
    shore = rng.uniform(horizon + 0.2, 0.72)
    regions = [("sky", _WHOLE), ("sea", _ground(rng, horizon)), ("sand", _ground(rng, shore, 0.015))]
    return regions, horizon


def _lake(rng: Random) -> tuple[_Regions, float]:
    regions, horizon = _open_air(rng, "water", 0.5, 0.0)
    if rng.random() < 0.7:
        shore = rng.choice(("grass", "grass", "sand", "gravel"))
        regions.append((shore, _ground(rng, rng.uniform(horizon + 0.2, 0.8), 0.02)))
    return regions, horizon


def _snowfield(rng: Random) -> tuple[_Regions, float]:
    return _open_air(rng, "snow", 0.6, 0.02, ("road", "gravel", "dirt"))


def _desert(rng: Random) -> tuple[_Regions, float]:
    return _open_air(rng, rng.choice(("sand", "sand", "dirt", "gravel")), 0.4, 0.02, ("road", "grass", "pavement"))


def _railway(rng: Random) -> tuple[_Regions, float]:
    regions, horizon = _open_air(rng, rng.choice(("grass", "gravel", "dirt")), 0.3)
    top = rng.uniform(horizon + 0.12, 0.75)
    regions.append(("railroad", _ribbon(rng, top, top + rng.uniform(0.1, 0.16), 0.0)))
    return regions, horizon


def _sports(rng: Random) -> tuple[_Regions, float]:
    return _open_air(rng, "playingfield", 0.15, 0.0, ("dirt", "pavement"))


def _room(rng: Random) -> tuple[_Regions, float]:
    horizon = rng.uniform(0.42, 0.6)
    regions = [("wall", _WHOLE), ("floor", _ground(rng, horizon))]
    if rng.random() < 0.6:
        regions.append(("rug", _oval(rng.uniform(0.35, 0.65), 0.82, rng.uniform(0.28, 0.4), rng.uniform(0.09, 0.14))))
    if rng.random() < 0.4:
        depth = rng.uniform(0.08, 0.13)
        regions.append(("ceiling", ((0.0, 0.0), (1.0, 0.0), (1.0, depth), (0.0, depth))))
    return regions, horizon


def _kitchen(rng: Random) -> tuple[_Regions, float]:
    horizon = rng.uniform(0.45, 0.62)
    return [("wall", _WHOLE), ("counter", _ground(rng, horizon))], horizon


_MAKERS: dict[str, tuple[float, Callable[[Random], tuple[_Regions, float]]]] = {
    "meadow": (2.6, _meadow),
    "street": (2.6, _street),
    "beach": (1.4, _beach),
    "lake": (1.3, _lake),
    "snowfield": (1.0, _snowfield),
    "desert": (1.0, _desert),
    "railway": (0.9, _railway),
    "sports": (1.0, _sports),
    "room": (3.0, _room),
    "kitchen": (2.4, _kitchen),
}
SCENERIES: tuple[str, ...] = tuple(_MAKERS)
_WEIGHTS = [weight for weight, _ in _MAKERS.values()]


def sample_scenery(rng: Random, name: str | None = None) -> Scenery:
    """Draw a scenery with its stuff regions; randomness comes from `rng` alone.

    Args:
        rng: source of randomness.
        name: one of `SCENERIES`; None = any.
    """
    name = name or rng.choices(SCENERIES, _WEIGHTS)[0]
    regions, horizon = _MAKERS[name][1](rng)
    stuff = tuple(StuffRegion(stuff_name, polygon, rng.getrandbits(32)) for stuff_name, polygon in regions)
    return Scenery(name, stuff, horizon)


_OPEN_GROUND = {"person": 4, "pet": 2.5, "animal": 5, "mount": 2.5, "seat": 0.8, "surface": 1, "sport": 1, "luggage": 1}
_OPEN_GROUND |= {"container": 1.2, "tree": 2, "building": 1.5, "toy": 0.7, "bike": 1.2, "holdable": 0.8, "flower": 0.7}
_OPEN_GROUND |= {
    "food": 0.5,
    "street": 0.4,
    "board": 0.4,
    "furniture": 0.4,
    "device": 0.3,
    "backdrop": 0.8,
    "plant": 0.6,
}
_OPEN_GROUND |= {"vehicle": 1.2, "worn": 0.5, "aircraft": 0.4, "hanging": 0.3}

ZONE_GROUPS: dict[str, dict[str, float]] = {
    "sky": {"flyer": 4, "aircraft": 3.5, "floater": 3, "sky": 3},
    "grass": _OPEN_GROUND | {"flower": 2, "tree": 3, "animal": 6},
    "dirt": _OPEN_GROUND,
    "gravel": _OPEN_GROUND,
    "sand": _OPEN_GROUND | {"plant": 2.5, "board": 1.5, "sport": 2},
    "snow": _OPEN_GROUND | {"board": 2.5, "plant": 0, "flower": 0},
    "playingfield": {"person": 5, "sport": 5, "holdable": 3, "seat": 1, "animal": 1, "pet": 1, "board": 1, "toy": 1},
    "road": {"vehicle": 6, "bike": 3.5, "person": 1, "pet": 0.7, "street": 0.6, "board": 0.8},
    "pavement": {"person": 4, "street": 5, "pet": 2, "seat": 1.5, "bike": 2, "luggage": 2, "vehicle": 0.8, "tree": 1}
    | {"building": 2.5, "container": 1, "surface": 1, "board": 0.8, "holdable": 1, "hanging": 0.3, "worn": 0.4},
    "railroad": {"train": 6},
    "water": {"boat": 5, "swimmer": 4},
    "sea": {"boat": 5, "swimmer": 4},
    "river": {"boat": 5, "swimmer": 4},
    "wall": {"mounted": 5, "hanging": 0.5},
    "ceiling": {"hanging": 1},
    "floor": {"seat": 5, "furniture": 5, "pet": 2, "surface": 3, "person": 3, "container": 2, "toy": 2, "luggage": 1.5}
    | {"device": 1.5, "door": 1, "backdrop": 1.5, "board": 0.5, "holdable": 1.5, "animal": 1, "worn": 0.7, "food": 0.4},
    "rug": {"pet": 3, "toy": 3, "seat": 1.5, "luggage": 1, "item": 1, "surface": 1, "holdable": 1, "container": 1},
    "counter": {"item": 8, "food": 7, "device": 2.5, "container": 4, "toy": 1, "holdable": 2, "worn": 1.5, "pet": 0.7}
    | {"flower": 0.6},
    "mountain": {},
}

# What an object does on the ground it stands on; "on" where nothing is listed.
GROUND_PREDICATES: dict[tuple[str, str], str] = {
    **{("vehicle", ground): "parked on" for ground in ("grass", "dirt", "gravel", "sand", "snow", "pavement")},
    **{("bike", ground): "parked on" for ground in ("grass", "dirt", "gravel", "sand", "snow", "pavement")},
    ("vehicle", "road"): "driving on",
    ("bike", "road"): "driving on",
    ("train", "railroad"): "driving on",
    **{("swimmer", water): "in" for water in ("water", "sea", "river")},
    **{(group, "sky"): "in" for group in ("floater", "sky")},
    ("mounted", "wall"): "attached to",
    ("hanging", "ceiling"): "hanging from",
    ("hanging", "wall"): "hanging from",
}
