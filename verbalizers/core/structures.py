"""Findings of computer-vision models as frozen and validated dataclasses.

Every verbalizer, whatever library it runs, answers with one of these; everything behind it (words, images,
cache, training data) reads nothing else. Arrays are numpy, stored read-only. Two objects are equal when all
their values are.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from verbalizers.core.boxes import quads_to_boxes
from verbalizers.core.plugins import import_plugins
from verbalizers.core.valid_text import make_valid
from verbalizers.core.validation import (
    check_inside_image,
    check_map_shape,
    checked_array,
    checked_boxes,
    checked_confidence,
    checked_image_size,
    checked_names,
)

__all__ = [
    "SCENE_FIELDS",
    "STRUCTURES",
    "Detections",
    "Finding",
    "Relations",
    "Scene",
    "Segments",
    "TextLines",
    "register_finding",
]


logger = logging.getLogger(__name__)


class Finding:
    """Base of all findings: equality by value, plain-dict form, read-only arrays.

    Subclasses are frozen dataclasses (`eq=False`: equality is this class's) with a class attribute `structure`;
    they validate in `__post_init__` and store what they checked with `self._set(name=value)`.
    """

    structure: ClassVar[str]

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self))
        return all(
            a.dtype == b.dtype and np.array_equal(a, b)
            if isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
            else a is b or a == b
            for a, b in pairs
        )

    __hash__ = None

    def check_image_size(self, image_size_hw: tuple[int, int]) -> None:
        """Check that the finding may be one about an image of this size; a further kind's, as it enters a scene.

        Raises:
            ValueError: it may not.
        """

    def to_dict(self) -> dict[str, Any]:
        """Values that `json.dumps` accepts; `from_dict` gives an equal object back."""
        result: dict[str, Any] = {"structure": self.structure}
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            result[entry.name] = value.tolist() if isinstance(value, np.ndarray) else value
        return {k: list(v) if isinstance(v, tuple) else v for k, v in result.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Finding:
        """Rebuild from `to_dict`'s output.

        Raises:
            ValueError: a field is missing, unknown or does not validate.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"{cls.__name__}.from_dict expects a mapping, got {type(data).__name__}.")
        if data.get("structure", cls.structure) != cls.structure:
            raise ValueError(f"{cls.__name__}.from_dict expects {cls.structure!r}, got {data['structure']!r}.")
        values = {name: value for name, value in data.items() if name != "structure"}
        known = {entry.name for entry in dataclasses.fields(cls)}
        required = {
            entry.name
            for entry in dataclasses.fields(cls)
            if entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        }
        if not required <= set(values) <= known:
            raise ValueError(
                f"{cls.__name__}.from_dict expects the fields {sorted(required)} (of {sorted(known)}), "
                f"got {sorted(values)}. Write it with {cls.__name__}.to_dict()."
            )
        return cls(**values)


@dataclass(frozen=True, eq=False)
class Segments(Finding):
    """Panoptic segmentation: every pixel belongs to at most one segment.

    Attributes:
        panoptic_map: int32 `(H, W)`, the segment id of each pixel; 0 or negative = unassigned.
        segment_ids: N positive, distinct ids. An id without pixels and a pixel without a listed id are
            allowed.
        class_names: N names; "" = the model's class is unknown (the words skip it).
        confidence: float32 `(N,)` in [0, 1].
    """

    structure: ClassVar[str] = "segments"

    panoptic_map: np.ndarray
    segment_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    confidence: np.ndarray

    def __post_init__(self) -> None:
        source = np.asarray(self.panoptic_map)
        if source.dtype.kind not in "iub":
            raise ValueError(
                f"`panoptic_map` must hold integer ids, got {source.dtype}. Convert with astype(np.int32)."
            )
        source = source.astype(np.uint8) if source.dtype == bool else source
        panoptic_map = checked_array(source, np.int32, (None, None), "panoptic_map", "Give one (H, W) map per image.")
        checked_image_size(panoptic_map.shape, "panoptic_map.shape")
        given = list(self.segment_ids)
        ids = tuple(checked_array(given, np.int32, (len(given),), "segment_ids", "Give one id per segment.").tolist())
        if len(set(ids)) != len(ids) or any(segment_id < 1 for segment_id in ids):
            raise ValueError(f"`segment_ids` must be positive and distinct, got {ids}. Renumber the segments from 1.")
        names = checked_names(self.class_names, "class_names")
        if len(names) != len(ids):
            raise ValueError(f"`class_names` must have {len(ids)} entries like segment_ids, got {len(names)}.")
        self._set(panoptic_map=panoptic_map, segment_ids=ids, class_names=names)
        self._set(confidence=checked_confidence(self.confidence, len(ids)))

    def __len__(self) -> int:
        return len(self.segment_ids)

    @property
    def image_size_hw(self) -> tuple[int, int]:
        """Height and width of the map in pixels."""
        return self.panoptic_map.shape

    @cached_property
    def boxes_xyxy(self) -> np.ndarray:
        """float32 `(N, 4)` tight pixel boxes `[x0, y0, x1 + 1, y1 + 1]`; zeros for an id without pixels."""
        height, width = self.image_size_hw
        segments, rows, starts, stops = self._runs
        boxes = np.full((len(self), 4), [width, height, 0, 0], dtype=np.float32)
        np.minimum.at(boxes[:, 0], segments, starts)
        np.minimum.at(boxes[:, 1], segments, rows)
        np.maximum.at(boxes[:, 2], segments, stops)
        np.maximum.at(boxes[:, 3], segments, rows + 1)
        boxes[self.pixel_counts == 0] = 0
        return boxes

    @cached_property
    def pixel_counts(self) -> np.ndarray:
        """int64 `(N,)`: how many pixels carry each id."""
        segments, _, starts, stops = self._runs
        return np.bincount(segments, stops - starts, minlength=len(self)).astype(np.int64)

    @cached_property
    def index_map(self) -> np.ndarray:
        """int64 `(H, W)`: which segment each pixel shows, -1 = none."""
        segments, rows, starts, stops = self._runs
        index_map = np.full(self.panoptic_map.size, -1, dtype=np.int64)
        lengths = stops - starts
        firsts = rows * self.panoptic_map.shape[1] + starts
        behind = np.cumsum(lengths)
        index_map[np.arange(behind[-1] if len(behind) else 0) + np.repeat(firsts - behind + lengths, lengths)] = (
            np.repeat(segments, lengths)
        )
        return index_map.reshape(self.panoptic_map.shape)

    @cached_property
    def _runs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Stretches of one row that carry one listed id, int64 `(R,)` each: segment, row, first column, column behind.

        One pass over the map, however many segments there are.
        """
        width = self.panoptic_map.shape[1]
        is_start = np.ones(self.panoptic_map.shape, dtype=bool)
        np.not_equal(self.panoptic_map[:, 1:], self.panoptic_map[:, :-1], out=is_start[:, 1:])
        starts = np.flatnonzero(is_start)
        lengths = np.diff(starts, append=self.panoptic_map.size)
        ids, found = np.array(self.segment_ids, dtype=np.int64), self.panoptic_map.ravel()[starts]
        order = np.argsort(ids)
        places = np.minimum(np.searchsorted(ids[order], found), max(len(ids) - 1, 0))
        is_listed = ids[order][places] == found if len(ids) else np.zeros(len(found), dtype=bool)
        starts, lengths, places = starts[is_listed], lengths[is_listed], places[is_listed]
        return order[places], starts // width, starts % width, starts % width + lengths

    def to_dict(self) -> dict[str, Any]:
        """As `Finding.to_dict`; the map is run-length encoded row by row."""
        flat = self.panoptic_map.ravel()
        starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
        lengths = np.diff(np.concatenate([starts, [flat.size]]))
        result = super().to_dict()
        result["panoptic_map"] = {
            "image_size_hw": list(self.image_size_hw),
            "run_ids": flat[starts].tolist(),
            "run_lengths": lengths.tolist(),
        }
        return result

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Segments:
        """Rebuild from `to_dict`'s output; a plain nested list as the map is accepted too."""
        runs = data.get("panoptic_map") if isinstance(data, Mapping) else None
        if isinstance(runs, Mapping):
            next_step = "Write it with Segments.to_dict()."
            missing = {"image_size_hw", "run_ids", "run_lengths"} - set(runs)
            if missing:
                raise ValueError(f"`panoptic_map` must have {sorted(missing)}, got {sorted(runs)}. {next_step}")
            height, width = checked_image_size(runs["image_size_hw"])
            ids = checked_array(runs["run_ids"], np.int32, (None,), "run_ids", next_step)
            lengths = checked_array(runs["run_lengths"], np.int64, (None,), "run_lengths", next_step)
            # Checked before the map is allocated, so that a forged file cannot ask for unbounded memory.
            total = sum(lengths.tolist())  # numpy's would wrap round
            if len(lengths) != len(ids) or (lengths < 1).any() or total != height * width:
                raise ValueError(
                    f"`panoptic_map` runs must cover {height} x {width} pixels, got {total} in "
                    f"{len(lengths)} runs for {len(ids)} ids. {next_step}"
                )
            check_map_shape((height, width))
            flat = np.repeat(ids, lengths)
            data = {**data, "panoptic_map": flat.reshape(height, width)}
        return super().from_dict(data)


@dataclass(frozen=True, eq=False)
class Detections(Finding):
    """Object detection.

    Attributes:
        boxes_xyxy: float32 `(N, 4)` pixels of the original image, each with an area. They may reach outside it, as
            models place them: what is outside is cut off where they are said, merged, related or drawn.
        class_names: N names; "" = unknown class (the words skip it).
        confidence: float32 `(N,)` in [0, 1].
        image_size_hw: height and width of the original image in pixels.
    """

    structure: ClassVar[str] = "detections"

    boxes_xyxy: np.ndarray
    class_names: tuple[str, ...]
    confidence: np.ndarray
    image_size_hw: tuple[int, int]

    def __post_init__(self) -> None:
        boxes = checked_boxes(self.boxes_xyxy, None, "boxes_xyxy", "Wrap a single box as boxes[None].")
        names = checked_names(self.class_names, "class_names")
        if len(names) != len(boxes):
            raise ValueError(f"`class_names` must have {len(boxes)} entries like boxes_xyxy, got {len(names)}.")
        self._set(boxes_xyxy=boxes, class_names=names, image_size_hw=checked_image_size(self.image_size_hw))
        check_inside_image(boxes, self.image_size_hw, "boxes_xyxy")
        self._set(confidence=checked_confidence(self.confidence, len(boxes)))

    def __len__(self) -> int:
        return len(self.class_names)


@dataclass(frozen=True, eq=False)
class Relations(Finding):
    """A scene graph: objects and the relations between them.

    Attributes:
        object_names: M names of the objects of the relations; "" = unknown class.
        subject_indices: int64 `(R,)` into object_names.
        object_indices: int64 `(R,)` into object_names.
        predicates: R predicates ("on", "holding", ...).
        confidence: float32 `(R,)` in [0, 1].
        object_boxes_xyxy: float32 `(M, 4)` pixels of the original image, or None where the model gives none.
    """

    structure: ClassVar[str] = "relations"

    object_names: tuple[str, ...]
    subject_indices: np.ndarray
    object_indices: np.ndarray
    predicates: tuple[str, ...]
    confidence: np.ndarray
    object_boxes_xyxy: np.ndarray | None = None

    def __post_init__(self) -> None:
        names = checked_names(self.object_names, "object_names")
        predicates = checked_names(self.predicates, "predicates")
        length = len(predicates)
        next_step = f"Give one index per predicate ({length})."
        for name in ("subject_indices", "object_indices"):
            indices = checked_array(getattr(self, name), np.int64, (length,), name, next_step)
            if length and (indices.min() < 0 or indices.max() >= len(names)):
                raise ValueError(
                    f"`{name}` must lie in [0, {len(names) - 1}], got {indices.min()} to {indices.max()}. "
                    "They index object_names."
                )
            self._set(**{name: indices})
        self._set(object_names=names, predicates=predicates, confidence=checked_confidence(self.confidence, length))
        if self.object_boxes_xyxy is not None:
            next_step = "Give one box per object name."
            boxes = checked_boxes(self.object_boxes_xyxy, len(names), "object_boxes_xyxy", next_step)
            self._set(object_boxes_xyxy=boxes)

    def __len__(self) -> int:
        return len(self.predicates)


@dataclass(frozen=True, eq=False)
class TextLines(Finding):
    """Lines of text in reading order: what is handed in is said as it stands (`select_text_lines` puts it in order).

    Attributes:
        quads: float32 `(N, 4, 2)` corner points x, y in pixels, clockwise from the text's own top left: on a page that
            lies on its head, that is the line's lower right.
        texts: N strings, as read.
        confidence: float32 `(N,)` in [0, 1].
    """

    structure: ClassVar[str] = "text_lines"

    quads: np.ndarray
    texts: tuple[str, ...]
    confidence: np.ndarray

    def __post_init__(self) -> None:
        texts = checked_names(self.texts, "texts")
        next_step = "Give four x, y corners per text; boxes become quads with adapters.boxes_to_quads."
        quads = checked_array(self.quads, np.float32, (len(texts), 4, 2), "quads", next_step)
        x, y = quads[..., 0], quads[..., 1]
        areas = (x * np.roll(y, -1, axis=1) - y * np.roll(x, -1, axis=1)).sum(axis=1) / 2  # positive = clockwise
        if (areas <= 0).any():
            row = int((areas <= 0).argmax())
            raise ValueError(
                f"`quads` must be corners in clockwise order around an area, got {quads[row].tolist()} in row {row}. "
                f"{next_step}"
            )
        self._set(quads=quads, texts=texts, confidence=checked_confidence(self.confidence, len(texts)))

    def __len__(self) -> int:
        return len(self.texts)


STRUCTURES: dict[str, type[Finding]] = {c.structure: c for c in (Segments, Detections, Relations, TextLines)}
"""Finding classes by the name that their dict form carries."""

SCENE_FIELDS: dict[str, str] = {
    "segmentation": Segments.structure,
    "detection": Detections.structure,
    "scene_graph": Relations.structure,
    "ocr": TextLines.structure,
}
"""The four kinds, in their order in the text, and the Scene field each one fills: its structure's name."""


def register_finding(cls: type[Finding]) -> type[Finding]:
    """Class decorator that lets `Scene.from_dict` rebuild findings of this class; for kinds beyond the four.

    Args:
        cls: a frozen dataclass that inherits from Finding, with a class attribute `structure`: the name that its
            dict form carries.

    Raises:
        ValueError: no such class, or the name belongs to another one.
    """
    if not (isinstance(cls, type) and issubclass(cls, Finding) and dataclasses.is_dataclass(cls)):
        raise ValueError(f"expected a dataclass that inherits from Finding, got {cls!r}. Put @register_finding on top.")
    name = getattr(cls, "structure", None)
    if not isinstance(name, str) or not name:
        raise ValueError(f"{cls.__name__}.structure must be a name such as 'depth_map', got {name!r}.")
    known = STRUCTURES.get(name, cls)
    if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__) or name == Scene.structure:
        raise ValueError(f"structure {name!r} is already {known.__module__}.{known.__qualname__}. Choose another name.")
    STRUCTURES[name] = cls
    return cls


def _rebuild_finding(kind: str, value: Any) -> Any:
    """A further kind's finding from its dict form; what no installed package knows stays as it is."""
    if not (isinstance(value, Mapping) and isinstance(value.get("structure"), str)):
        return value
    if value["structure"] not in STRUCTURES:
        # Written by a plug-in: its finding is known once it is imported. A plug-in that is broken must not keep
        # anyone from reading the rest of the scene.
        try:
            import_plugins(kind)
        except ImportError as error:
            logger.debug("finding of kind %s stays a mapping: %s", kind, error)
    known = STRUCTURES.get(value["structure"])
    try:
        return value if known is None else known.from_dict(value)
    except ValueError as error:
        raise ValueError(f"findings[{kind!r}]: {error}") from error


@dataclass(frozen=True, eq=False)
class Scene(Finding):
    """All findings about one image.

    Attributes:
        image_size_hw: height and width of the image in pixels.
        segments, detections, relations, text_lines: None = no verbalizer ran, or it failed.
        findings: kind -> finding, for kinds beyond the four. A finding is one of this file's dataclasses, a
            sentence, or anything that JSON can hold.
        failures: kind -> what went wrong.
    """

    structure: ClassVar[str] = "scene"

    image_size_hw: tuple[int, int]
    segments: Segments | None = None
    detections: Detections | None = None
    relations: Relations | None = None
    text_lines: TextLines | None = None
    findings: Mapping[str, Any] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._set(image_size_hw=checked_image_size(self.image_size_hw))
        for name in SCENE_FIELDS.values():
            value, wanted = getattr(self, name), STRUCTURES[name]
            if value is not None and not isinstance(value, wanted):
                raise ValueError(
                    f"`{name}` must be {wanted.__name__} or None, got {type(value).__name__}. "
                    "See verbalizers.core.adapters."
                )
        for name in ("segments", "detections"):
            value = getattr(self, name)
            if value is not None and value.image_size_hw != self.image_size_hw:
                raise ValueError(
                    f"`{name}` must be of an image of {self.image_size_hw} (height, width) as the scene, got "
                    f"{value.image_size_hw}. Resize masks and boxes to the original image."
                )
        if self.relations is not None and self.relations.object_boxes_xyxy is not None:
            check_inside_image(self.relations.object_boxes_xyxy, self.image_size_hw, "relations.object_boxes_xyxy")
        if self.text_lines is not None:
            check_inside_image(quads_to_boxes(self.text_lines.quads), self.image_size_hw, "text_lines.quads")
        for name in ("findings", "failures"):
            if not isinstance(getattr(self, name), Mapping):
                raise ValueError(f"`{name}` must be a mapping by kind, got {type(getattr(self, name)).__name__}.")
        for kind, finding in self.findings.items():
            if isinstance(finding, np.ndarray):
                raise ValueError(f"findings[{kind!r}] must not be a bare array. Wrap a map as LabelMap(array).")
            if isinstance(finding, Finding):
                try:
                    finding.check_image_size(self.image_size_hw)
                except ValueError as error:
                    raise ValueError(f"findings[{kind!r}]: {error}") from error
        failures = {kind: str(reason) for kind, reason in dict(self.failures).items()}
        self._set(findings=make_valid(dict(self.findings)), failures=make_valid(failures))

    def to_dict(self) -> dict[str, Any]:
        """Values that `json.dumps` accepts; absent findings are left out."""
        result: dict[str, Any] = {"image_size_hw": list(self.image_size_hw)}
        for name in SCENE_FIELDS.values():
            value = getattr(self, name)
            if value is not None:
                result[name] = value.to_dict()
        if self.findings:
            result["findings"] = {k: v.to_dict() if isinstance(v, Finding) else v for k, v in self.findings.items()}
        if self.failures:
            result["failures"] = dict(self.failures)
        return result

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Scene:
        """Rebuild from `to_dict`'s output.

        Raises:
            ValueError: a field is missing, unknown or does not validate.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"Scene.from_dict expects a mapping, got {type(data).__name__}.")
        values = dict(data)
        for name in SCENE_FIELDS.values():
            if values.get(name) is not None:
                values[name] = STRUCTURES[name].from_dict(values[name])
        if isinstance(values.get("findings"), Mapping):
            values["findings"] = {kind: _rebuild_finding(kind, value) for kind, value in values["findings"].items()}
        return super().from_dict(values)
