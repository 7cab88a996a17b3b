"""Relations that geometry shows: on, in, over, beside, in front of; of boxes alone also riding, holding, wearing.

Pure numpy, no names, no models.

Three kinds of evidence, from the weakest: boxes; panoptic masks, whose lower edges tell what an object rests on; depth,
which tells touching from hiding. Everything is computed for all pairs of objects at once; lengths are compared with the
objects' own sizes, so that neither the image's scale nor an object's place matters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from verbalizers.core.boxes import box_area
from verbalizers.core.validation import check_range

__all__ = ["PEOPLES_PREDICATES", "PREDICATES", "BoxRoles", "GeometrySettings", "PlacedObjects", "relate_objects"]

PREDICATES = ("on", "in", "over", "beside", "in front of")
"""In the order that decides between equally clear relations of one pair."""
PEOPLES_PREDICATES = ("riding", "holding", "wearing")
"""What people do with things; told where only boxes are known."""

#: An object's base: the lowest part of its height, whose lower edge touches what carries it.
_BASE_SHARE = 0.2
#: Unassigned pixels between two segments that touch, as a share of the map's shorter side.
_GAP_SHARE = 0.02
#: How far below an object's top its carrier may be touched (share of the carrier's height) where only boxes are known:
#: surely on it up to the first, beside its front from the second on.
_SINK_RANGE = (0.35, 0.8)
#: Scores of what boxes alone suggest are multiplied by this; of what is seen apart in the air, by the second.
_BOX_TRUST, _AIR_TRUST = 0.9, 0.7


@dataclass(eq=False, kw_only=True)
class GeometrySettings:
    """How clear a relation must be, and which are told.

    Attributes:
        threshold: lowest score of a relation that is told. The words have a threshold of their own (0.8).
        max_relations: how many are told at most, the clearest first.
        min_contact: share of an object's base that must touch what carries or holds it.
        max_gap: farthest neighbour that is "beside", as a share of the lower object's height.
        max_rise: farthest thing that is "over", as a multiple of the taller object's height.
        min_overlap: share of the smaller box that must be shared for one object to hide a part of another.
        depth_gap: nearness, as a share of the image's depth range, by which two objects differ when one is in front.
    """

    threshold: float = 0.5
    max_relations: int = 30
    min_contact: float = 0.5
    max_gap: float = 0.5
    max_rise: float = 2.0
    min_overlap: float = 0.1
    depth_gap: float = 0.08

    def __post_init__(self) -> None:
        check_range(self, "threshold", "min_contact", "min_overlap", "depth_gap", is_open=True)
        check_range(self, "max_gap", "max_rise", high=None, is_open=True)
        check_range(self, "max_relations", high=None)


@dataclass(frozen=True, eq=False)
class BoxRoles:
    """What N objects may be to each other; boxes overlap for many reasons, so that without masks names must agree too.

    Attributes:
        kind: int `(N,)`, equal for objects of one name: neither carries nor holds the other.
        is_person: bool `(N,)`: rides, holds and wears.
        is_support: bool `(N,)`: things are on it, as on a table.
        can_fly: bool `(N,)`: is over others.
        is_mount: bool `(N,)`: people ride on it, above its foot.
        is_board: bool `(N,)`: people ride on it, standing.
        is_held: bool `(N,)`: fits a hand.
        is_worn: bool `(N,)`: is worn on head or breast.
    """

    kind: np.ndarray
    is_person: np.ndarray
    is_support: np.ndarray
    can_fly: np.ndarray
    is_mount: np.ndarray
    is_board: np.ndarray
    is_held: np.ndarray
    is_worn: np.ndarray


@dataclass(frozen=True, eq=False)
class PlacedObjects:
    """N objects of one image.

    Attributes:
        boxes_xyxy: float `(N, 4)` pixels of the map, inside the image.
        object_map: int `(H, W)`, which object each pixel shows; -1 = none. An object without a pixel has its box alone.
        is_region: bool `(N,)`: sky, grass, wall: things are on, in and over it, it is on nothing itself.
        is_ground: bool `(N,)`: what rests on it is not in the air.
        holding: float `(N,)`: share of an object's outline that must touch this one for the object to be in it, not on
            it; 0 = water or a bowl, 0.5 = a car, infinity = a table.
        nearness: float `(N,)` in [0, 1], 1 = nearest; None without depth.
        nearness_map: float `(H, W)`, likewise; None without depth.
        roles: where no object has a mask: what decides with the boxes.
    """

    boxes_xyxy: np.ndarray
    object_map: np.ndarray
    is_region: np.ndarray
    is_ground: np.ndarray
    holding: np.ndarray
    nearness: np.ndarray | None = None
    nearness_map: np.ndarray | None = None
    roles: BoxRoles | None = None

    def __len__(self) -> int:
        return len(self.boxes_xyxy)


def relate_objects(
    placed: PlacedObjects, settings: GeometrySettings
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], np.ndarray]:
    """Find the relations of all pairs.

    A pair has one relation at most. What is "on" or "in" something is so of one thing, the clearest. "beside" is told
    once, of the smaller object. "in front of" needs depth, or an object that hides a part of another and stands lower:
    on one ground, the lower foot is nearer. With `roles` only supports and vessels carry and hold, only what flies is
    over something, and people ride, hold and wear.

    Args:
        placed: the objects.
        settings: what is clear enough.

    Returns:
        Subjects and objects, int64 `(R,)`; predicates; scores, float64 `(R,)` in [0, 1], descending. Ties are ordered
        by place in the image: the order of the objects matters only where two have one box.
    """
    if len(placed) < 2:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), (), np.zeros(0)
    pairs = _measure_pairs(placed)
    rest, enclosed, air = _find_carriers(placed, pairs, settings)
    is_in = enclosed >= placed.holding
    is_apart = (rest == 0) & (rest.T == 0)
    scores = np.stack(
        [
            np.where(is_in, 0, rest),
            np.where(is_in, rest, 0),
            is_apart * _score_over(placed, pairs, air, settings),
            is_apart * _score_beside(placed, pairs, settings),
            is_apart * _score_front(placed, pairs, enclosed, air, settings),
        ]
    )  # (5, N, N): predicate, subject, object
    if placed.roles is not None:
        scores[2] *= placed.roles.can_fly[:, None] if placed.nearness is None else 1
        people = _score_people(placed, pairs, placed.roles, rest > 0)  # (3, N, N)
        is_free = (people.max(axis=0) < settings.threshold) & (people.max(axis=0).T < settings.threshold)
        scores = np.concatenate([scores * is_free, people])
    scores[:, placed.is_region] = 0
    scores[:, np.eye(len(placed), dtype=bool)] = 0
    return _choose(np.where(scores >= settings.threshold, scores, 0), placed.boxes_xyxy, settings.max_relations)


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Box measures of every pair, `(N, N)`: row = subject, column = object."""

    heights: np.ndarray  # (N,)
    areas: np.ndarray  # (N,)
    overlap_y: np.ndarray  # shared height
    gap_x: np.ndarray  # 0 where they overlap
    shared: np.ndarray  # intersection over the smaller area
    shared_x: np.ndarray  # shared width over the narrower one's
    sink: np.ndarray  # how deep the subject's foot lies in the object: 0 = its top, 1 = its foot
    contained_x: np.ndarray  # shared width over the subject's


def _measure_pairs(placed: PlacedObjects) -> _Pairs:
    x0, y0, x1, y1 = np.asarray(placed.boxes_xyxy, dtype=np.float64).T
    widths, heights = np.maximum(x1 - x0, 1e-6), np.maximum(y1 - y0, 1e-6)
    span_x = np.minimum(x1[:, None], x1) - np.maximum(x0[:, None], x0)
    span_y = np.minimum(y1[:, None], y1) - np.maximum(y0[:, None], y0)
    overlap_x, overlap_y = np.maximum(span_x, 0), np.maximum(span_y, 0)
    areas = np.maximum(box_area(placed.boxes_xyxy).astype(np.float64), 1e-6)
    return _Pairs(
        heights=heights,
        areas=areas,
        overlap_y=overlap_y,
        gap_x=np.maximum(-span_x, 0),
        shared=overlap_x * overlap_y / np.minimum(areas[:, None], areas),
        shared_x=overlap_x / np.minimum(widths[:, None], widths),
        sink=(y1[:, None] - y0) / heights,
        contained_x=overlap_x / widths[:, None],
    )


def _ramp(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 up to `low`, 1 from `high` on (or the other way round), straight between."""
    return np.clip((values - low) / (high - low), 0, 1)


# ---------------------------------------------------------------- what an object rests on


def _find_carriers(
    placed: PlacedObjects, pairs: _Pairs, settings: GeometrySettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What carries or holds what.

    Returns:
        How surely each object rests on or in each other, `(N, N)`, one carrier at most; how far the other encloses it,
        `(N, N)`; and how surely it is in the air, `(N,)`.
    """
    num_objects = len(placed)
    has_mask = np.bincount(placed.object_map[placed.object_map >= 0], minlength=num_objects) > 0
    touch, nearness_below = _measure_bases(placed, has_mask)
    enclosed = np.where(has_mask, _measure_outlines(placed, has_mask), pairs.shared)
    holds = np.isfinite(placed.holding)

    # Masks: the base's lower edge touches the carrier. What is larger than its carrier and touches only its upper rim
    # may as well stand behind it, half hidden: less sure.
    is_rim = (pairs.sink < 0.1) & ~placed.is_region & ~holds & (pairs.areas[:, None] > pairs.areas)
    by_mask = np.where(touch >= settings.min_contact, touch * np.where(is_rim, 0.75, 1), 0)
    # Boxes: the foot lies within the upper part of the carrier's box, or anywhere within a vessel's.
    reach = np.where(holds, _ramp(pairs.sink, 1.1, 1.0), _ramp(pairs.sink, *_SINK_RANGE[::-1]))
    is_above = placed.boxes_xyxy[:, None, 1] < placed.boxes_xyxy[:, 1]
    is_over_it = (pairs.contained_x >= settings.min_contact) & (pairs.sink > -0.05) & (is_above | holds)
    rest = np.where(has_mask, by_mask, _BOX_TRUST * pairs.contained_x * reach * is_over_it)
    if placed.roles is not None:
        carries = placed.roles.is_support | (placed.holding == 0)
        is_smaller = (pairs.areas[:, None] < pairs.areas) | placed.roles.is_support
        rest *= carries & is_smaller & (placed.roles.kind[:, None] != placed.roles.kind)
    # The sky is far behind a kite in it; else what is carried is as near as the place it stands on, and what hides an
    # object's foot, or is only seen behind it, is not.
    is_backdrop = placed.is_region & ~placed.is_ground
    if placed.nearness is not None:
        below = np.where(np.isnan(nearness_below), placed.nearness, nearness_below)
        step = np.abs(below - placed.nearness[:, None])
        rest *= np.where(is_backdrop & holds, 1, _ramp(step, 2 * settings.depth_gap, settings.depth_gap))
    np.fill_diagonal(rest, 0)
    is_grounded = (rest[:, ~is_backdrop] >= settings.threshold).any(axis=1)
    is_aloft = (rest[:, is_backdrop] >= settings.threshold).any(axis=1)
    air = np.where(is_grounded, 0, np.where(is_aloft, 1, _AIR_TRUST))
    rest[placed.is_region] = 0
    return np.where(np.arange(num_objects) == rest.argmax(axis=1)[:, None], rest, 0), enclosed, air


def _measure_bases(placed: PlacedObjects, has_mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share `(N, N)` of each object's base that touches each other's mask, and the mean nearness there (NaN = none)."""
    num_objects = len(placed)
    rows, columns, owners, below, rows_below = _find_lower_edges(placed.object_map)
    base_top = placed.boxes_xyxy[:, 3] - _BASE_SHARE * (placed.boxes_xyxy[:, 3] - placed.boxes_xyxy[:, 1])
    is_base = rows + 1 > base_top[owners]
    owners, below, columns, rows_below = (a[is_base] for a in (owners, below, columns, rows_below))
    strips = _find_box_bases(placed.object_map, placed.boxes_xyxy, has_mask)
    owners, below, columns, rows_below = map(np.append, (owners, below, columns, rows_below), strips)
    touch = _count_pairs(owners, below, num_objects)
    total = np.maximum(np.bincount(owners, minlength=num_objects), 1)[:, None]
    if placed.nearness_map is None:
        return touch / total, np.full(touch.shape, np.nan)
    near = _count_pairs(owners, below, num_objects, placed.nearness_map[rows_below, columns])
    return touch / total, np.divide(near, touch, out=np.full(touch.shape, np.nan), where=touch > 0)


def _count_pairs(
    owners: np.ndarray, others: np.ndarray, num_objects: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """How often, or with which sum of weights, each pair occurs, float64 `(N, N)`; negative others are skipped."""
    is_known = others >= 0
    flat = owners[is_known] * num_objects + others[is_known]
    counts = np.bincount(flat, None if weights is None else weights[is_known], num_objects**2)
    return counts.reshape(num_objects, num_objects).astype(np.float64)


def _find_lower_edges(object_map: np.ndarray) -> tuple[np.ndarray, ...]:
    """All pixels of objects whose lower neighbour is not of the same object.

    Returns:
        Five int arrays `(P,)`: row, column, object, the object below (-1 = none within the bridged gap, or the
        image's edge), and the row where that one begins.
    """
    height = len(object_map)
    gap = max(1, round(_GAP_SHARE * min(object_map.shape)))
    first_row = np.where(object_map >= 0, np.arange(height)[:, None], height)
    first_row = np.minimum.accumulate(first_row[::-1], axis=0)[::-1]  # first assigned row at or below each pixel
    is_edge = object_map >= 0
    is_edge[:-1] &= object_map[:-1] != object_map[1:]
    rows, columns = np.nonzero(is_edge)
    owners = object_map[rows, columns]
    rows_below = np.append(first_row, np.full((1, object_map.shape[1]), height), axis=0)[rows + 1, columns]
    is_near = (rows_below < height) & (rows_below - rows <= 1 + gap)
    rows_below = np.minimum(rows_below, height - 1)
    below = np.where(is_near, object_map[rows_below, columns], -1)
    keep = below != owners  # a hole in an object is no edge of it
    return tuple(array[keep] for array in (rows, columns, owners, below, rows_below))


def _find_box_bases(object_map: np.ndarray, boxes_xyxy: np.ndarray, has_mask: np.ndarray) -> tuple[np.ndarray, ...]:
    """The pixels just below the middle of the boxes of objects without a mask: their lower edges.

    Returns:
        Four int arrays `(P,)`: object, the object there (-1 = none, or beyond the image), column and row.
    """
    height, width = object_map.shape
    strips = [(np.zeros(0, np.int64),) * 4]
    for index in np.flatnonzero(~has_mask):
        x0, _, x1, y1 = boxes_xyxy[index]
        margin = 0.2 * (x1 - x0)
        columns = np.arange(min(int(np.floor(x0 + margin)), width - 1), min(int(np.ceil(x1 - margin)), width))
        row = int(np.ceil(y1))
        found = object_map[row, columns] if row < height else np.full(len(columns), -1)
        strips.append((np.full(len(columns), index), found, columns, np.full(len(columns), min(row, height - 1))))
    return tuple(map(np.concatenate, zip(*strips, strict=True)))


def _measure_outlines(placed: PlacedObjects, has_mask: np.ndarray) -> np.ndarray:
    """Share of each object's outline, on all four sides, that borders on each other's mask; `(N, N)`."""
    num_objects = len(placed)
    counts, total = np.zeros((num_objects, num_objects)), np.zeros(num_objects)
    x0, y0, x1, y1 = placed.boxes_xyxy.T
    height, width = placed.object_map.shape
    views = (
        (placed.object_map, (x0, y0, x1, y1)),
        (placed.object_map[::-1], (x0, height - y1, x1, height - y0)),
        (placed.object_map.T, (y0, x0, y1, x1)),
        (placed.object_map.T[::-1], (y0, width - x1, y1, width - x0)),
    )
    for view, corners in views:  # each side is the lower one of some view
        _, _, owners, others, _ = _find_lower_edges(view)
        more_owners, more_others, _, _ = _find_box_bases(view, np.stack(corners, axis=1), has_mask)
        owners, others = np.append(owners, more_owners), np.append(others, more_others)
        counts += _count_pairs(owners, others, num_objects)
        total += np.bincount(owners, minlength=num_objects)
    return counts / np.maximum(total, 1)[:, None]


# ---------------------------------------------------------------- the other relations


def _score_over(placed: PlacedObjects, pairs: _Pairs, air: np.ndarray, settings: GeometrySettings) -> np.ndarray:
    """Above and apart.

    In a photograph what is higher may only be farther away on the ground: height counts in full for what is seen in the
    air, not at all for what stands on something, and with depth only between equals.
    """
    rise = -pairs.sink * pairs.heights  # from the object's top up to the subject's foot
    limit = settings.max_rise * np.maximum(pairs.heights[:, None], pairs.heights)
    is_above = (rise >= -0.1 * np.minimum(pairs.heights[:, None], pairs.heights)) & (rise <= limit)
    aligned = _ramp(pairs.shared_x, 0.25, 0.75)
    trust = air[:, None]
    if placed.nearness is not None:
        is_level = np.abs(placed.nearness[:, None] - placed.nearness) <= 2 * settings.depth_gap
        trust = np.where(placed.is_region, trust, is_level * np.where(trust > 0, np.maximum(trust, _BOX_TRUST), 0))
    is_backdrop = placed.is_region & ~placed.is_ground
    scores = is_above * aligned * (1 - 0.3 * np.clip(rise / limit, 0, 1)) * trust * ~is_backdrop
    # Whatever flies is over much: the clearest thing and the clearest ground are told.
    is_clearest = np.zeros(scores.shape, dtype=bool)
    for group in (placed.is_region, ~placed.is_region):
        clearest = np.where(group, scores, 0)
        is_clearest |= (clearest == clearest.max(axis=1, keepdims=True)) & group
    return np.where(is_clearest, scores, 0)


def _score_beside(placed: PlacedObjects, pairs: _Pairs, settings: GeometrySettings) -> np.ndarray:
    """Side by side: feet level, a small gap, nothing hidden; the same from both."""
    lower = np.minimum(pairs.heights[:, None], pairs.heights)
    feet = placed.boxes_xyxy[:, 3]
    level = _ramp(np.abs(feet[:, None] - feet) / lower, 0.5, 0.1)
    close = np.where(pairs.gap_x <= settings.max_gap * lower, 1 - 0.4 * pairs.gap_x / (settings.max_gap * lower), 0)
    scores = level * close * _ramp(pairs.shared_x, 0.4, 0.1) * (pairs.overlap_y >= 0.4 * lower)
    if placed.nearness is not None:
        step = np.abs(placed.nearness[:, None] - placed.nearness)
        scores *= _ramp(step, 2 * settings.depth_gap, settings.depth_gap)
    return scores * ~(placed.is_region | placed.is_region[:, None])


def _score_front(
    placed: PlacedObjects, pairs: _Pairs, enclosed: np.ndarray, air: np.ndarray, settings: GeometrySettings
) -> np.ndarray:
    """Nearer, on one line of sight.

    Without depth, of two things that stand and meet in the image the one with the lower foot is nearer. Where the
    other one is the narrower, it may as well sit on this one, be worn or held by it: nothing is said.
    """
    amount = 0.6 + 0.4 * _ramp(pairs.shared, settings.min_overlap, 0.5)
    is_met = (pairs.shared >= settings.min_overlap) & ~placed.is_region
    if placed.nearness is not None:
        step = placed.nearness[:, None] - placed.nearness
        sure = 0.75 + 0.25 * _ramp(step, settings.depth_gap, 3 * settings.depth_gap)
        return np.where(is_met & (step >= settings.depth_gap), amount * sure, 0)
    feet = placed.boxes_xyxy[:, 3]
    lead = _ramp((feet[:, None] - feet) / pairs.heights, 0.02, 0.12)
    stands = air < 1
    return np.where(is_met & (pairs.contained_x.T < 0.85) & stands[:, None] & stands & (enclosed > 0), amount * lead, 0)


def _score_people(placed: PlacedObjects, pairs: _Pairs, roles: BoxRoles, rests: np.ndarray) -> np.ndarray:
    """Riding, holding and wearing, from boxes; `(3, N, N)`, people are the subjects."""
    x0, y0, x1, y1 = np.asarray(placed.boxes_xyxy, dtype=np.float64).T
    heights, middle_x, middle_y = pairs.heights, (x0 + x1) / 2, (y0 + y1) / 2
    is_within_x = (middle_x[:, None] > x0) & (middle_x[:, None] < x1)  # the subject's middle
    # A rider's feet hang beside the mount, above its own; who stands beside it has them as low as the mount.
    rise = (y0 - y0[:, None]) / heights[:, None]  # how far a person stands out above the thing, in the person's heights
    is_mounted = is_within_x & (rise > 0.2) & (pairs.sink > 0.2) & (pairs.sink < 0.96)
    stands = np.abs(y1[:, None] - middle_y) / heights[:, None]  # from the feet to the board's middle
    is_boarded = (pairs.shared_x > 0.5) & (rise > 0.5) & (stands < 0.2)
    riding = roles.is_mount * is_mounted + roles.is_board * is_boarded
    # Of a thing: where its middle lies in the person's box, 0 = at the top, 1 = at the foot.
    level = (middle_y - y0[:, None]) / heights[:, None]
    is_small, is_free = (
        pairs.areas < 0.8 * pairs.areas[:, None],
        ~rests.any(axis=1),
    )  # what rests on a table is not held
    held = roles.is_held * is_free * is_small * (pairs.shared > 0.15) * (level > 0) * (level < 0.65)
    is_central = np.abs(middle_x - middle_x[:, None]) < 0.3 * (x1 - x0)[:, None]
    worn = roles.is_worn * is_central * is_small * (pairs.shared > 0.1) * (level > -0.35) * (level < 0.5)
    return _BOX_TRUST * np.stack([riding, held, worn]) * (roles.is_person[:, None] & ~roles.is_person)


def _choose(
    scores: np.ndarray, boxes_xyxy: np.ndarray, max_relations: int
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], np.ndarray]:
    """The clearest relation of each pair, the clearest pairs first; where both could be the subject, the smaller is."""
    x0, y0, x1, y1 = boxes_xyxy.T
    order = np.lexsort((x1, x0, y1, y0, box_area(boxes_xyxy)))
    scores = scores[:, order][:, :, order]
    best = scores.max(axis=0)
    is_upper = np.triu(np.ones(best.shape, dtype=bool))
    best = np.where(np.where(is_upper, best >= best.T, best > best.T), best, 0)
    flat = np.argsort(-best, axis=None, kind="stable")[: min(max_relations, np.count_nonzero(best))]
    subjects, objects = np.unravel_index(flat, best.shape)
    names = (*PREDICATES, *PEOPLES_PREDICATES)
    predicates = tuple(names[index] for index in scores[:, subjects, objects].argmax(axis=0))
    return order[subjects], order[objects], predicates, best[subjects, objects]
