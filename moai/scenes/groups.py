"""Small groups of objects whose geometry shows a relation: riding, holding, wearing, on, in, beside, in front of, over.

A group is planned around its own origin: x right, y down, y = 0 on the ground, one unit = a standing person's height.
`scene_layout` finds it a place and a scale. Members are listed from back to front.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from moai.scenes.asset_loading import sprite_boxes
from moai.scenes.vocabulary import GROUPS, OBJECT_CLASSES, PERSON_POSES, ObjectClass

__all__ = ["GroupMember", "GroupPlan", "plan_copies", "plan_group", "plan_single"]


@dataclass(frozen=True, slots=True)
class GroupMember:
    """One object of a group: its sprite and box (x0, y0, x1, y1) in group units."""

    name: str
    sprite: int
    box: tuple[float, float, float, float]
    flipped: bool = False
    has_shadow: bool = True


@dataclass(slots=True)
class GroupPlan:
    """Members from back to front, relations (subject, predicate, object) between them, and who touches the ground."""

    members: list[GroupMember]
    relations: list[tuple[int, str, int]] = field(default_factory=list)
    grounded: tuple[int, ...] = (0,)

    def bounds(self) -> tuple[float, float, float, float]:
        """Smallest box around all members, in group units."""
        boxes = [member.box for member in self.members]
        lows = (min(box[k] for box in boxes) for k in (0, 1))
        highs = (max(box[k] for box in boxes) for k in (2, 3))
        return (*lows, *highs)


def _pick(rng: Random, groups: tuple[str, ...], weights: tuple[float, ...] | None = None) -> ObjectClass:
    return rng.choice(GROUPS[rng.choices(groups, weights)[0] if weights else rng.choice(groups)])


def _choose_sprite(rng: Random, name: str) -> int:
    if name == "person":  # portraits are heads only: they appear where a group asks for them
        return int(rng.random() * len(PERSON_POSES))
    return int(rng.random() * len(sprite_boxes()[name]))


def _place(
    rng: Random,
    name: str,
    x: float = 0.0,
    base: float = 0.0,
    height: float | None = None,
    sprite: int | None = None,
    has_shadow: bool = True,
) -> GroupMember:
    """A member whose bottom centre is at (x, base)."""
    sprite = _choose_sprite(rng, name) if sprite is None else sprite
    _, _, width_px, height_px = sprite_boxes()[name][sprite]
    if height is None:
        # Wide sprites (a bus, a crocodile) would become huge at their nominal height.
        height = OBJECT_CLASSES[name].height * min(1.0, 1.6 * height_px / width_px) * rng.uniform(0.9, 1.12)
    half = 0.5 * height * width_px / height_px
    return GroupMember(name, sprite, (x - half, base - height, x + half, base), rng.random() < 0.5, has_shadow)


def _width(member: GroupMember) -> float:
    return member.box[2] - member.box[0]


def _height(member: GroupMember) -> float:
    return member.box[3] - member.box[1]


def _standing_person(rng: Random, height: float | None = None, x: float = 0.0, base: float = 0.0) -> GroupMember:
    sprite = int(rng.random() * PERSON_POSES.count("standing"))
    return _place(rng, "person", x, base, height, sprite)


def plan_single(rng: Random, name: str) -> GroupPlan:
    """One object on its own."""
    return GroupPlan([_place(rng, name, has_shadow=OBJECT_CLASSES[name].group not in ("flyer", "sky"))])


def plan_copies(rng: Random, name: str, count: int) -> list[GroupPlan]:
    """`count` separate plans of one name, in one size: something to count."""
    first = plan_single(rng, name)
    height = _height(first.members[0])
    copies = [_place(rng, name, height=height * rng.uniform(0.92, 1.05)) for _ in range(count - 1)]
    return [first, *(GroupPlan([copy]) for copy in copies)]


def _plan_riding(rng: Random, mount: str) -> GroupPlan:
    """A person on a mount, bicycle or board: the rider's legs are behind the mount, a board is under the feet."""
    back = _place(rng, mount)
    top, group = back.box[1], OBJECT_CLASSES[mount].group
    if group == "board":
        rider = _standing_person(rng, rng.uniform(0.9, 1.05), base=top + 0.45 * _height(back))
        return GroupPlan([rider, back], [(0, "riding", 1)], grounded=(1,))
    height = rng.uniform(0.72, 0.85) * max(0.8, _height(back))
    seat = top + (0.2 if group == "mount" else 0.35) * _height(back)
    x = rng.uniform(-0.06, 0.06) * _width(back)
    return GroupPlan([_standing_person(rng, height, x, seat + 0.42 * height), back], [(0, "riding", 1)], grounded=(1,))


# How far below the top of the open boats' sprites their rim lies: people sit behind it.
_BOAT_RIMS = {1: 0.5, 2: 0.3}


def _plan_in_boat(rng: Random, boat: str) -> GroupPlan:
    sprite = rng.choice(tuple(_BOAT_RIMS))
    back = _place(rng, boat, sprite=sprite)
    height = rng.uniform(0.5, 0.6)
    base = back.box[1] + _BOAT_RIMS[sprite] * _height(back) + 0.4 * height
    # What reaches below the hull would show under it.
    rider = _standing_person(rng, height, rng.uniform(-0.1, 0.1) * _width(back), min(base, -0.02))
    return GroupPlan([rider, back], [(0, "in", 1)], grounded=(1,))


def _plan_holding(rng: Random) -> GroupPlan:
    person = _standing_person(rng)
    name = rng.choice((*(c.name for c in GROUPS["holdable"]), "balloon", "kite", "handbag", "teddy bear", "umbrella"))
    side = rng.choice((-1, 1))
    hand_x, hand_y = side * 0.5 * _width(person), -0.5 * _height(person)
    height = max(OBJECT_CLASSES[name].height, 0.34) * rng.uniform(0.9, 1.05)
    if name in ("balloon", "kite", "umbrella", "baseball bat", "tennis racket"):
        base = hand_y + 0.03
    else:
        base = hand_y + 0.5 * height
    item = _place(rng, name, 0.0, base, height, has_shadow=False)
    shift = hand_x + side * 0.3 * _width(item)
    x0, y0, x1, y1 = item.box
    item = GroupMember(item.name, item.sprite, (x0 + shift, y0, x1 + shift, y1), side < 0, False)
    return GroupPlan([person, item], [(0, "holding", 1)])


def _plan_wearing(rng: Random) -> GroupPlan:
    name = rng.choice(GROUPS["worn"]).name
    portraits = len(sprite_boxes()["person"]) - len(PERSON_POSES)
    if name != "tie" and rng.random() < 0.6:
        sprite = len(PERSON_POSES) + int(rng.random() * portraits)
        person = _place(rng, "person", height=0.8, sprite=sprite, has_shadow=False)
        head_width, eyes, brow = 0.8 * _width(person), -0.43, -0.7
    else:
        person = _standing_person(rng, 1.3)
        head_width, eyes, brow = 0.72 * _width(person), -1.1, -1.17
    if name == "tie":
        worn = _place(rng, name, 0.0, -0.55, 0.42, has_shadow=False)
    elif name == "glasses":
        worn = _place(rng, name, 0.0, 0.0, 1.0, has_shadow=False)
        height = 0.92 * head_width / _width(worn)
        worn = _place(rng, name, 0.0, eyes + 0.5 * height, height, worn.sprite, has_shadow=False)
    else:
        worn = _place(rng, name, 0.0, 0.0, 1.0, has_shadow=False)
        height = (1.05 if name == "hat" else 0.8) * head_width / _width(worn)
        worn = _place(rng, name, 0.0, brow + 0.12 * height, height, worn.sprite, has_shadow=False)
    return GroupPlan([person, worn], [(0, "wearing", 1)])


# Height of the surface from the top of the sprite, and its half width, as parts of the sprite.
_SURFACES = {
    "dining table": (0.1, 0.36),
    "bench": (0.5, 0.36),
    "chair": (0.52, 0.16),
    "couch": (0.62, 0.26),
    "bed": (0.5, 0.26),
    "rock": (0.1, 0.12),
    "cardboard": (0.1, 0.2),
    "cabinet": (0.02, 0.3),
    "rug": (0.5, 0.3),
}


def _plan_on_surface(rng: Random, surface: str) -> GroupPlan:
    support = _place(rng, surface)
    depth, half_width = _SURFACES[surface]
    top = support.box[1] + depth * _height(support)
    x = rng.uniform(-half_width, half_width) * _width(support)
    is_seat = OBJECT_CLASSES[surface].group == "seat"
    groups, weights = ("pet", "toy", "item", "food", "holdable", "animal"), (5, 3, 1, 1, 2, 1.5)
    if not is_seat:
        groups, weights = ("pet", "toy", "item", "food", "device", "container"), (2, 1, 4, 5, 3, 2)
    placed = _pick(rng, groups, weights)
    height = min(placed.height, 0.55) * rng.uniform(0.9, 1.05)
    subject = _place(rng, placed.name, x, top, height, has_shadow=False)
    alive = placed.group in ("pet", "animal") or placed.name == "teddy bear"
    return GroupPlan([support, subject], [(1, "sitting on" if is_seat and alive else "on", 0)])


def _plan_in_container(rng: Random, container: str) -> GroupPlan:
    front = _place(rng, container, height=OBJECT_CLASSES[container].height * 1.15)
    groups = ("flower",) if container == "vase" else ("food", "food", "pet", "toy", "flower", "item")
    if container == "bowl":
        groups = ("food",)
    content = _pick(rng, groups)
    height = min(content.height, 0.42)
    subject = _place(rng, content.name, 0.0, front.box[1] + (0.2 if container == "vase" else 0.42) * height, height)
    while _width(subject) > 0.95 * _width(front) and height > 0.2:
        height *= 0.85
        base = front.box[1] + (0.2 if container == "vase" else 0.42) * height
        subject = _place(rng, content.name, 0.0, base, height, subject.sprite)
    return GroupPlan([subject, front], [(0, "in", 1)], grounded=(1,))


def _plan_in_front_of(rng: Random, back_name: str) -> GroupPlan:
    back = _place(rng, back_name)
    front_class = _pick(rng, ("person", "pet", "animal", "bike", "luggage", "flower"), (3, 3, 3, 1.5, 1, 1))
    height = min(front_class.height, 0.62 * _height(back))
    front = _place(rng, front_class.name, 0.0, 0.1 * _height(back), height)
    x = rng.uniform(-0.3, 0.3) * _width(back)
    x0, y0, x1, y1 = front.box
    if (x1 - x0) > 0.6 * _width(back):
        x = rng.choice((-1, 1)) * 0.5 * _width(back)
    front = GroupMember(front.name, front.sprite, (x0 + x, y0, x1 + x, y1), front.flipped)
    return GroupPlan([back, front], [(1, "in front of", 0)])


def _plan_hanging(rng: Random, tree: str) -> GroupPlan:
    back = _place(rng, tree, sprite=0)
    name = rng.choice(("lantern", "lantern", "monkey", "light", "banana", "apple"))
    height = max(0.3, 0.3 * _height(back))
    side = rng.choice((-0.3, 0.3)) * _width(back)
    top = back.box[1] + 0.5 * _height(back)
    item = _place(rng, name, side, top + height, height, has_shadow=False)
    return GroupPlan([back, item], [(1, "hanging from", 0)])


def _plan_beside(rng: Random, name: str, other: str) -> GroupPlan:
    left, right = _place(rng, name), _place(rng, other)
    gap = 0.5 * (_width(left) + _width(right)) + rng.uniform(0.03, 0.1)
    x0, y0, x1, y1 = right.box
    right = GroupMember(right.name, right.sprite, (x0 + gap, y0, x1 + gap, y1), right.flipped)
    order = (0, 1) if rng.random() < 0.5 else (1, 0)
    return GroupPlan([left, right], [(order[0], "beside", order[1])], grounded=(0, 1))


def _plan_over(rng: Random, name: str) -> GroupPlan:
    below = _place(rng, name)
    above_class = _pick(rng, ("flyer", "floater", "aircraft"), (4, 2, 2))
    gap = rng.uniform(0.06, 0.25)
    x = rng.uniform(-0.2, 0.2)
    above = _place(rng, above_class.name, x, below.box[1] - gap, has_shadow=False)
    predicate = "over" if above_class.group == "floater" else "flying over"
    return GroupPlan([below, above], [(1, predicate, 0)])


_Planner = Callable[[Random, str], GroupPlan]
# Which groups an object of each role starts, with weights against staying alone (weight 0.6).
_PLANNERS: dict[str, tuple[tuple[float, _Planner], ...]] = {
    "person": ((1.5, lambda rng, _: _plan_holding(rng)), (1.5, lambda rng, _: _plan_wearing(rng))),
    "mount": ((2.0, _plan_riding), (0.4, _plan_over)),
    "bike": ((1.5, _plan_riding),),
    "board": ((3.0, _plan_riding),),
    "boat": ((1.0, _plan_in_boat), (0.5, _plan_over)),
    "seat": ((2.5, _plan_on_surface),),
    "surface": ((2.5, _plan_on_surface),),
    "container": ((2.0, _plan_in_container),),
    "building": ((1.5, _plan_in_front_of), (0.5, _plan_over)),
    "tree": ((1.0, _plan_in_front_of), (1.0, _plan_hanging), (0.5, _plan_over)),
    "vehicle": ((0.7, _plan_in_front_of), (0.3, _plan_over)),
    "backdrop": ((1.0, _plan_in_front_of), (0.3, _plan_over)),
    "furniture": ((0.5, _plan_in_front_of),),
}
_BESIDE_WEIGHT = 0.3


def plan_group(rng: Random, name: str, neighbour: str | None) -> GroupPlan:
    """A plan of one or two objects around the object `name`.

    Args:
        rng: source of randomness.
        name: the object that stands on the ground.
        neighbour: an object that may stand beside it; None = never.
    """
    choices: list[tuple[float, _Planner]] = [(0.6, plan_single), *_PLANNERS.get(OBJECT_CLASSES[name].group, ())]
    if neighbour is not None and neighbour != name:
        choices.append((_BESIDE_WEIGHT, lambda r, n: _plan_beside(r, n, neighbour)))
    plan = rng.choices([planner for _, planner in choices], [weight for weight, _ in choices])[0](rng, name)
    return plan
