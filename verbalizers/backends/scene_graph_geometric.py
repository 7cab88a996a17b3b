"""A scene graph without a model: relations that masks, boxes and depth of other verbalizers show.

    {"kind": "scene_graph", "backend": "geometric"}

in `verbalizers.json`, beside a segmenter or a detector. It reads no pixel: `geometry.py` measures what others found,
this file knows names, for whether things are in or on what holds them is a matter of language.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from verbalizers.core.geometry import BoxRoles, GeometrySettings, PlacedObjects, relate_objects
from verbalizers.core.label_map import LabelMap
from verbalizers.core.named_objects import NamedObjects, name_objects
from verbalizers.core.registry import register_verbalizer
from verbalizers.core.structures import Relations, Scene
from verbalizers.core.validation import check_flags, check_range
from verbalizers.core.verbalizer import FindingsReader
from verbalizers.core.vocabulary_matching import name_keys

__all__ = ["GeometricSceneGraph"]

_WATER = ("water", "sea", "river", "lake", "swimming pool")
_GROUND = (
    "grass", "road", "pavement", "floor", "floor-wood", "sand", "snow", "dirt", "gravel", "playingfield", "platform",
    "railroad", "street", "ground", "field", *_WATER,
)  # fmt: skip
_BACKDROPS = ("sky", "wall", "wall-brick", "wall-stone", "wall-tile", "wall-wood", "ceiling", "mountain", "hill")
#: Things are in these, however little of them is hidden.
_VESSELS = (
    "bowl", "cup", "mug", "vase", "basket", "bucket", "box", "bag", "pot", "pan", "jar", "glass", "wine glass", "sink",
    "bathtub", "trash can", "crate", "boat", "canoe", "drawer", "suitcase", "backpack", "shopping cart", "net",
)  # fmt: skip
#: Things are in these where they are enclosed, else on them.
_ENCLOSURES = (
    "car", "bus", "truck", "train", "van", "airplane", "house", "building", "tent", "window", "door", "mirror", "cage",
    "oven", "microwave", "refrigerator", "toaster", "cabinet", "tree",
)  # fmt: skip
_ENCLOSED_SHARE = 0.5
#: Things are on these where no segment shows what touches what.
_SUPPORTS = (
    "table", "dining table", "coffee table", "desk", "counter", "bench", "chair", "couch", "bed", "stool", "shelf",
    "bookcase", "cabinet", "nightstand", "dresser", "plate", "tray", "saucer", "cardboard", "rug", "towel",
    "skateboard", "surfboard", "stove", "refrigerator", "bookshelf", "wheelchair", "swing", "roof", "raft",
)  # fmt: skip
_FLYING = (
    "bird", "airplane", "helicopter", "kite", "balloon", "drone", "butterfly", "bee", "rocket", "ufo", "parachute",
    "bat", "dragonfly",
)  # fmt: skip
_PEOPLE = (
    "person", "man", "woman", "boy", "girl", "child", "baby", "rider", "cyclist", "skier", "surfer", "player",
    "policeman", "clown",
)  # fmt: skip
_MOUNTS = (
    "horse", "bicycle", "motorcycle", "camel", "elephant", "donkey", "pony", "scooter", "moped", "tricycle",
    "unicycle", "llama",
)  # fmt: skip
_BOARDS = (
    "skis", "snowboard", "skateboard", "surfboard", "sled", "kick scooter",
)  # fmt: skip
_HELD = (
    "cup", "bottle", "wine glass", "mug", "fork", "knife", "spoon", "banana", "apple", "orange", "sandwich",
    "hot dog", "pizza", "donut", "baseball bat", "baseball glove", "tennis racket", "racket", "kite", "umbrella",
    "handbag", "briefcase", "book", "newspaper", "remote", "cell phone", "camera", "microphone", "teddy bear",
    "scissors", "toothbrush", "hair drier", "guitar", "violin", "trumpet", "saxophone", "flute", "balloon", "flower",
    "bouquet", "candle", "hammer", "axe", "sword", "fishing rod", "flag", "broom", "frisbee", "ice cream", "lollipop",
    "gift", "trophy",
)  # fmt: skip
_WORN = (
    "tie", "bow tie", "scarf", "hat", "cap", "helmet", "crown", "glasses", "sunglasses", "goggles", "mask", "necklace",
)  # fmt: skip


def _keys(names: Iterable[str]) -> frozenset[str]:
    return frozenset().union(*map(name_keys, names))


_GROUND_KEYS, _REGION_KEYS = _keys(_GROUND), _keys((*_GROUND, *_BACKDROPS))
_SUPPORT_KEYS, _FLYING_KEYS, _PEOPLE_KEYS = _keys(_SUPPORTS), _keys(_FLYING), _keys(_PEOPLE)
_MOUNT_KEYS, _BOARD_KEYS, _HELD_KEYS, _WORN_KEYS = map(_keys, (_MOUNTS, _BOARDS, _HELD, _WORN))
_HOLDING_KEYS = {0.0: _keys((*_WATER, "sky", *_VESSELS)), _ENCLOSED_SHARE: _keys(_ENCLOSURES)}


@register_verbalizer("scene_graph", "geometric")
@dataclass(eq=False, kw_only=True)
class GeometricSceneGraph(GeometrySettings, FindingsReader):
    """`on`, `in`, `over`, `beside` and `in front of` between segments and detections; needs no weights.

    Reads what segmentation, detection and depth found in the same image; one of the first two must be there. Segments
    give contacts, boxes less certain ones; depth, where it is known, tells what is in front and what only seems
    to stand on another. Where there are boxes alone, names must agree: things are on tables, in bowls, birds are over
    them, and people are also `riding`, `holding` and `wearing` what people do. The confidence of a relation is how
    clearly it is seen, 1 = no evidence against it.

    Attributes:
        detection_threshold: lowest confidence of a detection that takes part.
        merge_iou: a detection that overlaps a segment of its name by this much is the same object (`merging`).
        detections_first: such an object has the detection's name and box, even where the segment has another name
            (`merging.find_covering`).
    """

    detection_threshold: float = 0.5
    merge_iou: float = 0.5
    detections_first: bool = False

    version: ClassVar[int] = 2  # 2: of boxes alone fewer relations, and those of people
    uses: ClassVar[tuple[str, ...]] = ("segmentation", "detection", "depth")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "detection_threshold")
        check_range(self, "merge_iou", is_open=True)
        check_flags(self, "detections_first")

    def predict_with(self, images: Sequence[np.ndarray], scenes: Sequence[Scene]) -> list[Relations]:
        """Relations between segments and detections; the images are not read.

        Raises:
            ValueError: a scene has neither segments nor detections.
        """
        return [self.relate(scene) for scene in scenes]

    def relate(self, scene: Scene) -> Relations:
        """The relations of one scene, the clearest first; objects that take part in none are left out.

        Raises:
            ValueError: the scene has neither segments nor detections.
        """
        found = name_objects(
            scene, self.detection_threshold, self.merge_iou, "scene_graph/geometric", self.detections_first
        )
        names, boxes, placed = found.names, found.boxes_xyxy, _place_objects(scene, found)
        subjects, objects, predicates, scores = relate_objects(placed, self)
        kept = np.unique(np.concatenate([subjects, objects]))
        return Relations(
            object_names=tuple(names[index] for index in kept),
            subject_indices=np.searchsorted(kept, subjects),
            object_indices=np.searchsorted(kept, objects),
            predicates=predicates,
            confidence=scores,
            object_boxes_xyxy=boxes[kept],
        )


def _place_objects(scene: Scene, found: NamedObjects) -> PlacedObjects:
    """Where they are in map pixels, what their names say, and their depth where it is known."""
    names, object_map = found.names, found.object_map
    placed = PlacedObjects(
        boxes_xyxy=found.boxes_xyxy / found.stride,
        object_map=object_map,
        is_region=np.array([not _REGION_KEYS.isdisjoint(name_keys(name)) for name in names], dtype=bool),
        is_ground=np.array([not _GROUND_KEYS.isdisjoint(name_keys(name)) for name in names], dtype=bool),
        holding=np.array([_holding_of(name) for name in names], dtype=np.float64),
    )
    if (object_map < 0).all():
        placed = replace(placed, roles=_find_roles(names))
    depth = scene.findings.get("depth")
    if isinstance(depth, LabelMap) and names:
        placed = replace(placed, **_place_depth(depth.read_shares(), placed))
    return placed


def _find_roles(names: Sequence[str]) -> BoxRoles:
    keys = [name_keys(name) for name in names]
    first = [next(i for i, other in enumerate(keys) if not other.isdisjoint(mine)) for mine in keys]

    def among(known: frozenset[str]) -> np.ndarray:
        return np.array([not mine.isdisjoint(known) for mine in keys], dtype=bool)

    return BoxRoles(
        kind=np.array(first, dtype=np.int64),
        is_person=among(_PEOPLE_KEYS),
        is_support=among(_SUPPORT_KEYS),
        can_fly=among(_FLYING_KEYS),
        is_mount=among(_MOUNT_KEYS),
        is_board=among(_BOARD_KEYS),
        is_held=among(_HELD_KEYS),
        is_worn=among(_WORN_KEYS),
    )


def _holding_of(name: str) -> float:
    keys = name_keys(name)
    return next((share for share, known in _HOLDING_KEYS.items() if not known.isdisjoint(keys)), np.inf)


def _place_depth(nearness: np.ndarray, placed: PlacedObjects) -> dict[str, Any]:
    """Nearness of every map pixel and of every object: the median of its mask, or of its box's middle half."""
    height, width = placed.object_map.shape
    rows = np.arange(height) * nearness.shape[0] // height
    columns = np.arange(width) * nearness.shape[1] // width
    nearness_map = nearness[rows[:, None], columns]
    flat = placed.object_map.ravel()
    order = np.argsort(flat, kind="stable")
    starts = np.searchsorted(flat[order], np.arange(len(placed) + 1))
    medians = np.empty(len(placed))
    for index, (x0, y0, x1, y1) in enumerate(placed.boxes_xyxy):
        values = nearness_map.ravel()[order[starts[index] : starts[index + 1]]]
        if not values.size:
            left, top = min(int(0.75 * x0 + 0.25 * x1), width - 1), min(int(0.75 * y0 + 0.25 * y1), height - 1)
            right, bottom = max(left + 1, int(0.25 * x0 + 0.75 * x1)), max(top + 1, int(0.25 * y0 + 0.75 * y1))
            values = nearness_map[top:bottom, left:right]
        medians[index] = np.median(values)
    return {"nearness": medians, "nearness_map": nearness_map}
