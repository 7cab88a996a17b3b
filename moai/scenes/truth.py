"""From a layout to its truth: panoptic map, boxes, relations and text as `verbalizers.core.structures`.

Only masks are painted here (nearest neighbour, no pixels), so a text-only decoder can be trained on truth at thousands
of scenes a second; `scene_rendering` paints the same sprites at the same places.
"""

from dataclasses import dataclass
from functools import lru_cache
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from moai.scenes.asset_loading import sprite_mask
from moai.scenes.layout import PlacedObject, SceneLayout
from moai.scenes.vocabulary import OBJECT_CLASSES
from verbalizers.core.structures import Detections, Relations, Scene, Segments, TextLines

__all__ = ["EntityMap", "build_entity_map", "build_truth", "pixel_box"]

_MIN_STUFF_SHARE = 0.004
_MAX_RELATIONS = 10  # what the released MoAI tells the language model


@dataclass(frozen=True, slots=True)
class EntityMap:
    """Which entity each pixel shows.

    Attributes:
        entity_map: int32 (H, W), entity index + 1, stuff first, then objects.
        boxes_xyxy: float32 (num_entities, 4), tight boxes of what is visible in pixels; zeros where nothing is.
        pixel_counts: int64 (num_entities,).
    """

    entity_map: np.ndarray
    boxes_xyxy: np.ndarray
    pixel_counts: np.ndarray

    def framed(self, image_size: int, corner: tuple[int, int]) -> "EntityMap":
        """The map of an image that is set in a frame, where no entity is; or of the part that an image shows.

        Args:
            image_size: height and width of the whole, or the part, in pixels.
            corner: where (x, y) the map's upper left corner lies in it.
        """
        size = len(self.entity_map)
        if size == image_size:
            return self
        x, y = corner
        if size > image_size:
            return _measure(self.entity_map[-y : image_size - y, -x : image_size - x].copy(), len(self.boxes_xyxy))
        whole = np.zeros((image_size, image_size), dtype=self.entity_map.dtype)
        whole[y : y + size, x : x + size] = self.entity_map
        shift = np.array([x, y, x, y], np.float32)
        boxes = np.where(self.pixel_counts[:, None] > 0, self.boxes_xyxy + shift, self.boxes_xyxy)
        return EntityMap(whole, boxes, self.pixel_counts)


def pixel_box(box: tuple[float, float, float, float], image_size: int) -> tuple[int, int, int, int]:
    """Unit-square box to whole pixels (x0, y0, x1, y1), at least one pixel wide and high."""
    x0, y0 = round(box[0] * image_size), round(box[1] * image_size)
    return x0, y0, max(round(box[2] * image_size), x0 + 1), max(round(box[3] * image_size), y0 + 1)


@lru_cache(maxsize=8192)
def _sampling_indices(source: int, target: int, flipped: bool) -> np.ndarray:
    indices = (np.arange(target) * source + source // 2) // target
    return (source - 1 - indices) if flipped else indices


def _object_mask(placed: PlacedObject, width: int, height: int) -> np.ndarray:
    mask = sprite_mask(placed.name, placed.sprite)
    rows = _sampling_indices(mask.shape[0], height, False)
    return mask[rows[:, None], _sampling_indices(mask.shape[1], width, placed.flipped)]


def _paint_sign(canvas: np.ndarray, placed: PlacedObject, entity: int, image_size: int) -> None:
    mask = Image.new("1", (image_size, image_size))
    draw = ImageDraw.Draw(mask)
    for polygon in sign_polygons(placed):
        draw.polygon([(x * image_size, y * image_size) for x, y in polygon], 1)
    canvas[np.asarray(mask)] = entity


def sign_polygons(placed: PlacedObject) -> list[tuple[tuple[float, float], ...]]:
    """Post (if any) and board of a sign, in the unit square, in painting order."""
    sign = placed.sign
    polygons = []
    if sign.on_post:
        centre = 0.5 * (sign.box[0] + sign.box[2])
        half = 0.09 * sign.font_size
        middle = 0.25 * sum(y for _, y in sign.board)
        polygons.append(
            (
                (centre - half, middle),
                (centre + half, middle),
                (centre + half, sign.box[3]),
                (centre - half, sign.box[3]),
            )
        )
    return [*polygons, sign.board]


def build_entity_map(layout: SceneLayout, image_size: int) -> EntityMap:
    """Paint the masks of all entities from back to front.

    Args:
        layout: the scene.
        image_size: height and width of the map in pixels.
    """
    canvas_image = Image.new("I", (image_size, image_size), 1 if layout.stuff else 0)
    draw = ImageDraw.Draw(canvas_image)
    for index, region in enumerate(layout.stuff):
        if index:
            draw.polygon([(x * image_size, y * image_size) for x, y in region.polygon], index + 1)
    canvas = np.array(canvas_image, dtype=np.int32)
    first = len(layout.stuff)
    for index, placed in enumerate(layout.objects):
        entity = first + index + 1
        if placed.sign is not None:
            _paint_sign(canvas, placed, entity, image_size)
            continue
        x0, y0, x1, y1 = pixel_box(placed.box, image_size)
        mask = _object_mask(placed, x1 - x0, y1 - y0)
        cut_x, cut_y = max(-x0, 0), max(-y0, 0)
        window = canvas[y0 + cut_y : y1, x0 + cut_x : x1]
        window[mask[cut_y : cut_y + window.shape[0], cut_x : cut_x + window.shape[1]]] = entity
    return _measure(canvas, first + len(layout.objects))


def _measure(canvas: np.ndarray, num_entities: int) -> EntityMap:
    counts = np.bincount(canvas.ravel(), minlength=num_entities + 1)[1:]
    boxes = np.zeros((num_entities, 4), dtype=np.float32)
    for index in np.flatnonzero(counts):
        mask = canvas == index + 1
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        boxes[index] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return EntityMap(canvas, boxes, counts)


def _is_panoptic(layout: SceneLayout, entity: int) -> bool:
    if entity < len(layout.stuff):
        return True
    return OBJECT_CLASSES[layout.entity_name(entity)].in_panoptic_vocabulary


def build_truth(
    layout: SceneLayout, entities: EntityMap, inner_size: int | None = None, corner: tuple[int, int] = (0, 0)
) -> Scene:
    """What perfect verbalizers would find.

    Segments hold things and stuff of the panoptic vocabulary; pixels of other names are unassigned there and come as
    detections. Relations speak about all of them. The order of findings is shuffled by the scene's seed, so that it
    tells nothing.

    Args:
        layout: the scene.
        entities: its `build_entity_map`.
        inner_size: height and width in pixels of what is inside a frame, or of the scene of which the image shows a
            part; None = there is neither.
        corner: where (x, y) the inside's upper left corner lies.
    """
    size = entities.entity_map.shape
    order = [
        entity
        for entity in range(len(entities.boxes_xyxy))
        if entities.pixel_counts[entity] > (_MIN_STUFF_SHARE * size[0] * size[1] if entity < len(layout.stuff) else 0)
    ]
    Random(layout.texture_seed).shuffle(order)
    inside = [entity for entity in order if _is_panoptic(layout, entity)]
    outside = [entity for entity in order if not _is_panoptic(layout, entity)]
    ids = np.zeros(len(entities.boxes_xyxy) + 1, dtype=np.int32)
    ids[[entity + 1 for entity in inside]] = np.arange(1, len(inside) + 1)
    segments = Segments(
        panoptic_map=ids[entities.entity_map],
        segment_ids=tuple(range(1, len(inside) + 1)),
        class_names=tuple(layout.entity_name(entity) for entity in inside),
        confidence=np.ones(len(inside), dtype=np.float32),
    )
    detections = Detections(
        boxes_xyxy=entities.boxes_xyxy[outside],
        class_names=tuple(layout.entity_name(entity) for entity in outside),
        confidence=np.ones(len(outside), dtype=np.float32),
        image_size_hw=size,
    )
    return Scene(
        image_size_hw=size,
        segments=segments,
        detections=detections,
        relations=_build_relations(layout, entities, order),
        text_lines=_build_text_lines(layout, inner_size or size[0], corner),
    )


def _build_relations(layout: SceneLayout, entities: EntityMap, order: list[int]) -> Relations:
    number = {entity: index for index, entity in enumerate(order)}
    # Relations between objects first: they say more than what stands on which ground.
    first = len(layout.stuff)
    kept = [r for r in layout.relations if r[0] in number and r[2] in number]
    kept.sort(key=lambda relation: relation[2] < first)
    kept = kept[:_MAX_RELATIONS]
    Random(layout.texture_seed + 1).shuffle(kept)
    return Relations(
        object_names=tuple(layout.entity_name(entity) for entity in order),
        subject_indices=np.array([number[s] for s, _, _ in kept], dtype=np.int64),
        object_indices=np.array([number[o] for _, _, o in kept], dtype=np.int64),
        predicates=tuple(predicate for _, predicate, _ in kept),
        confidence=np.ones(len(kept), dtype=np.float32),
        object_boxes_xyxy=entities.boxes_xyxy[order],
    )


def _build_text_lines(layout: SceneLayout, image_size: int, corner: tuple[int, int]) -> TextLines:
    """Lines in reading order: sign by sign from the top, as text detectors sort them."""
    signs = sorted((o.sign for o in layout.objects if o.sign is not None), key=lambda sign: sign.quads[0][0][1])
    lines = [(quad, text) for sign in signs for quad, text in zip(sign.quads, sign.lines, strict=True)]
    quads = np.array([quad for quad, _ in lines], dtype=np.float32).reshape(-1, 4, 2) * image_size
    quads = quads + np.array(corner, np.float32)
    return TextLines(quads=quads, texts=tuple(text for _, text in lines), confidence=np.ones(len(lines), np.float32))
