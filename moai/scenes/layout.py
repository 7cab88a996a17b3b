"""Lay out a scene without painting it: stuff, objects, signs and their relations, in the unit square.

Everything is decided here, so truth, questions and pixels of one seed always agree; a layout takes about a millisecond.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from moai.scenes.groups import GroupMember, GroupPlan, plan_copies, plan_group, plan_single
from moai.scenes.scenery import GROUND_PREDICATES, ZONE_GROUPS, StuffRegion, sample_scenery, stuff_at
from moai.scenes.signs import SignFace, SignText, sample_sign, sample_sign_text
from moai.scenes.vocabulary import COLOURS, GROUPS, OBJECT_CLASSES, PAINTED_NAMES, PERSON_POSES, is_plural_name

__all__ = ["PlacedObject", "SceneLayout", "sample_layout"]

Box = tuple[float, float, float, float]

_MIN_SIDE, _MAX_SIDE = 0.1, 0.82
_MAX_OVERLAP = 0.08
_ATTEMPTS = 14
# Shares: of the things that can be painted, of the scenes that are made for counting, of the relations beside which
# there is another thing of one end's kind.
_PAINTED, _NUMBERS, _FOILED = 0.6, 0.6, 0.8
_MIN_SCALE = 0.15
# At most so many objects: smallest and largest scale.
_SCALES = ((2, (0.42, 0.62)), (4, (0.3, 0.46)), (6, (0.25, 0.36)), (12, (0.2, 0.3)))
# How often the names of a scene of many things occur: no number follows from another.
_MULTIPLICITIES = (*((1, 2), (1, 3), (2, 3), (1, 4), (1, 2, 3), (1, 2, 4), (1, 2, 5), (1, 3, 4), (1, 3, 5), (2, 3, 4)),)
_MISPLACED = 0.06  # a sheep in the kitchen: the scenery must not give the answer away
_SINGLE_INSTANCE = frozenset(  # mostly stuff in COCO, where a panoptic model reports one segment per name
    {"tree", "house", "building", "tent", "flower", "mirror", "window", "door", "rock", "cardboard", "light"}
    | {"cabinet", "fence", "shelf", "pillow", "stairs", "curtain", "bridge", "sign", "sun", "moon"}
)
_WATER = frozenset({"water", "sea", "river"})
_NO_SIGN = _WATER | {"sky", "wall", "mountain", "road", "railroad", "rug", "ceiling"}


@dataclass(frozen=True, slots=True)
class PlacedObject:
    """An object in the image.

    Attributes:
        name: one of `OBJECT_CLASSES`.
        sprite: which of the name's sprites.
        box: (x0, y0, x1, y1) in the unit square.
        flipped: mirrored left to right.
        has_shadow: whether it throws a shadow on the ground under it.
        sign: the words, for signs.
        colour: one of `PAINTS` that it is painted in; "" = its sprite's own.
        shade: of that colour, RGB; None = that of `PAINTS`.
    """

    name: str
    sprite: int
    box: Box
    flipped: bool
    has_shadow: bool
    sign: SignFace | None = None
    colour: str = ""
    shade: tuple[int, int, int] | None = None


@dataclass(frozen=True, slots=True)
class SceneLayout:
    """A scene before painting.

    Attributes:
        scenery: one of `scenery.SCENERIES`.
        stuff: regions from back to front.
        objects: from back to front.
        relations: (subject, predicate, object); entities are numbered stuff first, then objects.
        texture_seed: what the painting's randomness starts from.
    """

    scenery: str
    stuff: tuple[StuffRegion, ...]
    objects: tuple[PlacedObject, ...]
    relations: tuple[tuple[int, str, int], ...]
    texture_seed: int

    def entity_name(self, index: int) -> str:
        """Name of an entity of `relations`."""
        return (self.stuff[index] if index < len(self.stuff) else self.objects[index - len(self.stuff)]).name

    def emptied(self) -> "SceneLayout":
        """The layout of nothing at all."""
        return replace(self, stuff=(), objects=(), relations=())


def _overlap(a: Box, b: Box) -> float:
    """Intersection over the smaller box's area."""
    if a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]:  # most pairs
        return 0.0
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def _is_portrait(member: GroupMember) -> bool:
    return member.name == "person" and member.sprite >= len(PERSON_POSES)


class _LayoutBuilder:
    """Places groups one after the other; `finish` sorts them by depth and numbers the entities."""

    def __init__(self, rng: Random, scale: float, scenery: str | None = None, allowed: Sequence[str] = ()) -> None:
        self.rng, self.allowed = rng, allowed
        self.scenery = sample_scenery(rng, scenery)
        self.stuff = self.scenery.stuff
        self.stuff_bounds = [region.bounds() for region in self.stuff]
        self.scale = scale * (1.7 if self.scenery.name == "kitchen" else 1.0)
        self.objects: list[tuple[float, PlacedObject]] = []  # depth, object
        self.relations: list[tuple[tuple[str, int], str, tuple[str, int]]] = []
        self.taken: list[Box] = []
        self.names: set[str] = set()
        self.banned = ""  # what a forged sign speaks of, where it lies

    def choose_name(self, zone: str) -> str | None:
        """An object name for a kind of stuff."""
        weights = ZONE_GROUPS[zone]
        if not weights:
            return None
        if self.allowed:
            name = self.rng.choice(self.allowed)
        elif zone not in _WATER | {"sky", "wall", "ceiling", "railroad"} and self.rng.random() < _MISPLACED:
            name = self.rng.choice([c.name for c in OBJECT_CLASSES.values() if c.group not in ("sign", "boat")])
        else:
            group = self.rng.choices(list(weights), list(weights.values()))[0]
            name = self.rng.choice(GROUPS[group]).name
        return None if name == self.banned or (name in _SINGLE_INSTANCE and name in self.names) else name

    def choose_zone(self) -> int:
        """Index of a stuff region that may carry objects."""
        weights = []
        for region, (x0, y0, x1, y1) in zip(self.stuff, self.stuff_bounds, strict=True):
            carries = bool(ZONE_GROUPS[region.name])
            share = 0.2 if region.name in ("sky", "wall", "ceiling") else 1.0
            weights.append(share * (0.3 + (x1 - x0) * (y1 - y0)) if carries else 0.0)
        return self.rng.choices(range(len(self.stuff)), weights)[0]

    def place(self, plan: GroupPlan, zone: int) -> bool:
        """Find room for a plan on a stuff region; False where there is none."""
        bounds = plan.bounds()
        smallest = min(max(m.box[2] - m.box[0], m.box[3] - m.box[1]) for m in plan.members)
        for _ in range(_ATTEMPTS):
            boxes = self._propose(plan, zone, bounds, smallest)
            if boxes is None:
                continue
            if all(_overlap(box, other) <= _MAX_OVERLAP for box in boxes for other in self.taken):
                self._accept(plan, boxes, zone)
                return True
        return False

    def _propose(self, plan: GroupPlan, zone: int, bounds: Box, smallest: float) -> list[Box] | None:
        region, rng, horizon = self.stuff[zone], self.rng, self.scenery.horizon
        x0, y0, x1, y1 = self.stuff_bounds[zone]
        left, top, right, bottom = bounds
        y = rng.uniform(y0 + 0.03, y1 - 0.015)
        upright = region.name in ("sky", "wall", "ceiling")
        depth_scale = rng.uniform(0.75, 1.05) if upright else 0.72 + 0.55 * (y - horizon) / (1 - horizon)
        unit = self.scale * depth_scale
        unit = max(unit, _MIN_SIDE / smallest)
        unit = min(unit, _MAX_SIDE / max(right - left, bottom - top))
        if region.name == "ceiling":
            y = y0 + 0.6 * (y1 - y0) + unit * (bottom - top)
        elif upright:
            y = rng.uniform(y0 + 0.02, max(y0 + 0.02, min(horizon, y1) - 0.02 - unit * (bottom - top)))
            y += unit * (bottom - top)
        elif _is_portrait(plan.members[0]):
            y = 1.0  # a portrait is cut by the lower edge
        low_x, high_x = max(0.01 - unit * left, x0), min(0.99 - unit * right, x1)
        if low_x > high_x or y + unit * top < 0.0 or y + unit * bottom > 1.005:
            return None
        if region.name in _WATER and y + 0.45 * unit * top < y0:
            return None  # it would float in the air above the shore
        x = rng.uniform(low_x, high_x)
        feet = x + 0.5 * unit * (plan.members[plan.grounded[0]].box[0] + plan.members[plan.grounded[0]].box[2])
        probe = y - unit * (bottom - top) * 0.5 if upright else min(y, 0.999)
        if region.name != "ceiling" and stuff_at(self.stuff, feet, probe) != zone:
            return None
        return [
            (x + unit * m.box[0], y + unit * m.box[1], x + unit * m.box[2], min(y + unit * m.box[3], 1.0))
            for m in plan.members
        ]

    def _accept(self, plan: GroupPlan, boxes: list[Box], zone: int) -> None:
        first = len(self.objects)
        base = max(boxes[k][3] for k in plan.grounded)
        upright = self.stuff[zone].name in ("sky", "wall", "ceiling")
        for offset, (member, box) in enumerate(zip(plan.members, boxes, strict=True)):
            depth = (-1.0 if upright else base) + 1e-4 * offset
            shadow = member.has_shadow and not upright
            is_painted = member.name in PAINTED_NAMES and self.rng.random() < _PAINTED
            colour = self.rng.choice(tuple(COLOURS)) if is_painted else ""
            placed = PlacedObject(member.name, member.sprite, box, member.flipped, shadow, colour=colour)
            self.objects.append((depth, placed))
            self.names.add(member.name)
        self.taken += boxes
        for subject, predicate, target in plan.relations:
            self.relations.append((("object", first + subject), predicate, ("object", first + target)))
        for k in plan.grounded:
            if _is_portrait(plan.members[k]):
                continue  # nobody sees what a head cut by the image's edge stands on
            predicate, region = self._ground_predicate(plan.members[k], zone)
            self.relations.append((("object", first + k), predicate, ("stuff", region)))

    def _ground_predicate(self, member: GroupMember, zone: int) -> tuple[str, int]:
        group, ground = OBJECT_CLASSES[member.name].group, self.stuff[zone].name
        if member.name == "person":
            return f"{PERSON_POSES[member.sprite]} on", zone
        if group in ("flyer", "aircraft") and ground == "sky":
            below = [k for k, region in enumerate(self.stuff) if region.name not in ("sky", "mountain")]
            return "flying over", below[0]
        if group in ("pet", "animal", "mount"):
            return "standing on", zone
        return GROUND_PREDICATES.get((group, ground), "on"), zone

    def place_sign(self, text: SignText) -> bool:
        """Put up a sign, on a post on the ground or flat on a wall."""
        on_wall = self.stuff[0].name == "wall" and self.rng.random() < 0.6
        for _ in range(_ATTEMPTS):
            sign = sample_sign(self.rng, not on_wall, self.rng.uniform(0.3, 0.52), text)
            x0, y0, x1, y1 = sign.box
            width, height = x1 - x0, y1 - y0
            left = self.rng.uniform(0.01, 0.99 - width)
            if on_wall:
                top = self.rng.uniform(0.02, max(0.03, self.scenery.horizon - height - 0.03))
                zone = 0
            else:
                base = self.rng.uniform(self.scenery.horizon + 0.06, 0.98)
                zone = stuff_at(self.stuff, left + 0.5 * width, base)
                top = base - height
            box = (left, top, left + width, top + height)
            allowed = on_wall or self.stuff[zone].name not in _NO_SIGN
            if not allowed or top < 0 or box[3] > 1:
                continue
            if all(_overlap(box, other) <= 0.02 for other in self.taken):
                placed = PlacedObject("sign", 0, box, False, not on_wall, sign.moved_to(left - x0, top - y0))
                self.objects.append((-0.5 if on_wall else box[3], placed))
                self.taken.append(box)
                self.names.add("sign")
                predicate = "attached to" if on_wall else "on"
                self.relations.append((("object", len(self.objects) - 1), predicate, ("stuff", zone)))
                return True
        return False

    def finish(self) -> SceneLayout:
        """Sort by depth and number the entities."""
        order = sorted(range(len(self.objects)), key=lambda k: self.objects[k][0])
        rank = {index: position for position, index in enumerate(order)}
        first = len(self.stuff)

        def entity(reference: tuple[str, int]) -> int:
            kind, index = reference
            return index if kind == "stuff" else first + rank[index]

        relations = tuple((entity(s), predicate, entity(o)) for s, predicate, o in self.relations)
        objects = tuple(self.objects[index][1] for index in order)
        return SceneLayout(self.scenery.name, self.stuff, objects, relations, self.rng.getrandbits(63))


def _plan_next(builder: _LayoutBuilder, zone: int, remaining: int) -> list[GroupPlan]:
    rng = builder.rng
    ground = builder.stuff[zone].name
    name = builder.choose_name(ground)
    if name is None:
        return []
    if remaining < 2 or builder.allowed or ground in ("sky", "wall", "ceiling"):
        return [plan_single(rng, name)]
    plan = plan_group(rng, name, builder.choose_name(ground))
    fresh = [member.name for member in plan.members if member.name in _SINGLE_INSTANCE]
    if any(single in builder.names for single in fresh) or len(set(fresh)) < len(fresh):
        return []
    if builder.banned in {member.name for member in plan.members}:
        return []
    plans, taken = [plan], builder.names | {builder.banned, *(member.name for member in plan.members)}
    for member in plan.members if plan.relations else ():
        # Another thing of the same kind elsewhere: what is ridden is not the only thing that could be.
        name = rng.choice(GROUPS[OBJECT_CLASSES[member.name].group]).name
        if len(plan.members) + len(plans) <= remaining and name not in taken and rng.random() < _FOILED:
            plans.append(plan_single(rng, name))
            taken.add(name)
    return plans


def _place_numbers(builder: _LayoutBuilder, wanted: int) -> None:
    """Several names, each so many times: something to count, where no other number tells."""
    rng = builder.rng
    fitting = [numbers for numbers in _MULTIPLICITIES if wanted - 2 <= sum(numbers) <= wanted]
    for count in sorted(rng.choices(fitting, [max(numbers) ** 2 for numbers in fitting])[0], reverse=True):
        for _ in range(_ATTEMPTS):
            zone = builder.choose_zone()
            name = builder.choose_name(builder.stuff[zone].name)
            if name is not None and name not in builder.names | _SINGLE_INSTANCE and not is_plural_name(name):
                for plan in plan_copies(rng, name, count):
                    while not builder.place(plan, zone) and builder.scale > _MIN_SCALE:
                        builder.scale *= 0.93
                break


def sample_layout(
    rng: Random,
    num_objects: tuple[int, int] = (0, 9),
    sign_probability: float = 0.6,
    made_up_share: float = 0.4,
    split: str = "train",
    forged_share: float = 0.25,
    scenery: str | None = None,
    sign_text: SignText | None = None,
    names: Sequence[str] = (),
) -> SceneLayout:
    """Draw one scene.

    Args:
        rng: the only source of randomness.
        num_objects: smallest and largest number of objects, signs not counted; the largest may be undercut where
            the image is full.
        sign_probability: how often there is a sign with words; half of these have two.
        made_up_share: share of made-up words and numbers on signs.
        split: whose words signs carry.
        forged_share: of the scenes with signs, how many have one that poses as a prediction about a thing; in half of
            them the thing is there.
        scenery: one of `scenery.SCENERIES`; None = any.
        sign_text: what all signs say; None = drawn.
        names: the only things there are, each for itself; none = all of `OBJECT_CLASSES`, in groups too.
    """
    wanted = rng.randint(*num_objects)
    scale = rng.uniform(*next(sizes for most, sizes in _SCALES if wanted <= most))
    builder = _LayoutBuilder(rng, scale, scenery, names)
    draw = rng.random()
    if draw < forged_share * sign_probability and wanted:
        claim = None
        while claim is None or claim == "sign":
            zone = builder.choose_zone()
            claim = builder.choose_name(builder.stuff[zone].name)
        builder.place_sign(sign_text or sample_sign_text(rng, split, made_up_share, claim))
        if rng.random() < 0.5:
            wanted -= builder.place(plan_single(rng, claim), zone)
        else:
            builder.banned = claim
    elif draw < sign_probability:
        for _ in range(2 if rng.random() < 0.5 else 1):
            builder.place_sign(sign_text or sample_sign_text(rng, split, made_up_share))
    if wanted >= 3 and rng.random() < (_NUMBERS if wanted >= 6 else 0.5 * _NUMBERS):
        _place_numbers(builder, wanted)
        return builder.finish()
    before, patience = len(builder.objects), 6 + 4 * wanted
    while (placed := len(builder.objects) - before) < wanted and patience > 0:
        patience -= 1
        zone = builder.choose_zone()
        for plan in _plan_next(builder, zone, wanted - placed):
            if not builder.place(plan, zone):
                builder.scale *= 0.96
    return builder.finish()
