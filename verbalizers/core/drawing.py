"""A scene drawn over its image, with Pillow alone.

Every line has a dark halo and every label its own ground, so that both stay legible on light and on dark
images.
"""

from __future__ import annotations

import colorsys
import warnings
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from verbalizers.core.boxes import clip_boxes
from verbalizers.core.label_map import LabelMap
from verbalizers.core.registry import find_drawing
from verbalizers.core.segmentation_map import pascal_colors
from verbalizers.core.structures import Detections, Relations, Scene, Segments, TextLines
from verbalizers.core.words import LeftOutWarning, number_duplicates, strip_coco_suffixes

__all__ = ["draw_scene", "render_label_map"]

Color = tuple[int, int, int]

HALO: Color = (15, 15, 15)
TEXT_LINE_COLOR: Color = (0, 229, 255)
RELATION_COLOR: Color = (255, 235, 59)
MASK_OPACITY = 0.4
MAX_DRAWN_RELATIONS = 10
#: Of each other kind: more labels than this hide each other and the image.
MAX_LABELS = 200
#: Maps that are shown side by side.
MAPS_PER_ROW = 4
# Low to high, each brighter than the last: also read right in grey and by colour-blind eyes (magma's end points).
_MAP_STOPS = np.array([(0, 0, 4), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191)])
MAP_COLORS = np.stack(
    [np.interp(np.arange(256), np.linspace(0, 255, len(_MAP_STOPS)), stops) for stops in _MAP_STOPS.T], axis=1
).astype(np.uint8)


def distinct_color(index: int) -> Color:
    """A bright colour per index; neighbours differ: hues a golden section apart."""
    red, green, blue = colorsys.hsv_to_rgb((0.02 + index * 0.618034) % 1.0, 0.75 - 0.2 * (index % 2), 1.0)
    return int(255 * red), int(255 * green), int(255 * blue)


@dataclass
class _Canvas:
    """An image being drawn on, line and font sizes that fit it, and the places of its labels."""

    image: Image.Image
    labels: list[tuple[float, float, float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pen = ImageDraw.Draw(self.image)
        shorter = min(self.image.size)
        self.line_width = max(1, round(shorter / 250))
        self.font = ImageFont.load_default(size=max(9, min(28, round(shorter / 28))))

    def path(self, points: list[tuple[float, float]], color: Color) -> None:
        """A line through the points, on a halo."""
        self.pen.line(points, fill=HALO, width=self.line_width + 2, joint="curve")
        self.pen.line(points, fill=color, width=self.line_width, joint="curve")

    def arrow(self, start: np.ndarray, end: np.ndarray, color: Color) -> None:
        """A line from start to end with a head at its end; both are x, y."""
        length = float(np.hypot(*(end - start)))
        if length < 1:
            return
        along = (end - start) / length
        across = np.array([-along[1], along[0]])
        head = min(length / 2, 4.0 * self.line_width + 4)
        self.path([tuple(start), tuple(end - along * head / 2)], color)
        wings = [end, end - along * head + across * head / 2, end - along * head - across * head / 2]
        self.pen.polygon([tuple(p) for p in wings], fill=color, outline=HALO)

    def label(self, text: str, x: float, y: float, color: Color) -> None:
        """Text on a ground of its own, near x, y: moved down where another label stands, kept inside the image."""
        left, top, right, bottom = self.pen.textbbox((0, 0), text, font=self.font)
        pad = 2
        width, height = right - left + 2 * pad, bottom - top + 2 * pad
        x = min(max(x, 0), max(0, self.image.width - width))
        y = min(max(y, 0), max(0, self.image.height - height))
        for _ in range(12):
            if not any(self._overlaps((x, y, x + width, y + height), other) for other in self.labels):
                break
            y = y + height + 1 if y + 2 * height < self.image.height else max(0, y - 5 * height)
        self.labels.append((x, y, x + width, y + height))
        self.pen.rectangle((x, y, x + width, y + height), fill=color, outline=HALO)
        # Relative luminance decides between dark and light letters (ITU-R BT.601 weights).
        is_light = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
        ink = (0, 0, 0) if is_light else (255, 255, 255)
        self.pen.text((x + pad - left, y + pad - top), text, fill=ink, font=self.font)

    @staticmethod
    def _overlaps(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
        return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def draw_scene(scene: Scene, image: Image.Image | np.ndarray) -> Image.Image:
    """An image with everything found drawn over it: masks, boxes, relation arrows, text outlines.

    Args:
        scene: what was found in the image.
        image: PIL or uint8 `(H, W, 3)` RGB.

    Returns:
        A new RGB PIL image of the same size.

    Raises:
        ValueError: the image is not the size that the scene describes.
    """
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image = image.convert("RGB")
    if (image.height, image.width) != scene.image_size_hw:
        raise ValueError(
            f"expected an image of {scene.image_size_hw} (height, width) as the scene has, "
            f"got {(image.height, image.width)}. Draw on the image that was parsed."
        )
    if scene.segments is not None:
        image = _blend_masks(image, scene.segments)
    canvas = _Canvas(image.copy())
    if scene.relations is not None:
        _draw_arrows(canvas, scene.relations)  # before all labels, which would be crossed out
    if scene.detections is not None:
        _draw_detections(canvas, scene.detections)
    if scene.text_lines is not None:
        _draw_text_lines(canvas, scene.text_lines)
    if scene.segments is not None:
        _label_segments(canvas, scene.segments)
    if scene.relations is not None:
        _label_relations(canvas, scene.relations)
    return _draw_registered_kinds(canvas.image, scene)


def _draw_registered_kinds(image: Image.Image, scene: Scene) -> Image.Image:
    """Add what `register_drawing` functions draw, kind by kind, and maps of kinds without one as insets."""
    num_insets = 0
    for kind, finding in sorted(scene.findings.items()):
        drawing = None if finding is None else find_drawing(kind)
        if drawing is None and isinstance(finding, LabelMap):
            image, num_insets = _add_inset(image, finding, num_insets), num_insets + 1
        if drawing is not None:
            size, image = image.size, drawing(finding, scene, image)
            if not isinstance(image, Image.Image) or image.size != size:
                raise ValueError(f"the drawing of kind {kind!r} must return a PIL image of {size} (width, height).")
    return image


def _add_inset(image: Image.Image, label_map: LabelMap, place: int) -> Image.Image:
    """A copy with a map on a quarter of its sides, framed to stand out on any ground; the first at the bottom right."""
    size = tuple(max(1, length // MAPS_PER_ROW - 4) for length in image.size)  # two lines of frame on each side
    inset = render_label_map(label_map, size)
    inset = ImageOps.expand(ImageOps.expand(inset, 1, HALO), 1, (255, 255, 255))
    inset = inset.crop((0, 0, *(min(side, limit) for side, limit in zip(inset.size, image.size, strict=True))))
    row, column = divmod(place, MAPS_PER_ROW)
    corner = (image.width - (column + 1) * inset.width, image.height - (row + 1) * inset.height)
    result = image.copy()
    result.paste(inset, corner)
    return result


def render_label_map(label_map: LabelMap, size: tuple[int, int]) -> Image.Image:
    """A map as an RGB image of `size` (width, height).

    One channel goes from dark to bright, three are red, green and blue, of others the first is shown; numbers of
    things have colours of their own.
    """
    values = label_map.values if label_map.values.ndim == 2 or label_map.values.shape[2] == 3 else None
    values = label_map.values[..., 0] if values is None else values
    if label_map.is_numbers and values.ndim == 2:
        return Image.fromarray(pascal_colors(values + 1)).resize(size, Image.Resampling.NEAREST)
    low, high = (0, np.iinfo(values.dtype).max) if values.dtype.kind == "u" else (values.min(), values.max())
    shares = (values.astype(np.float32) - low) / max(float(high) - float(low), 1e-12)
    grey = Image.fromarray(np.round(255 * shares).astype(np.uint8)).resize(size, Image.Resampling.BOX)
    return grey if values.ndim == 3 else Image.fromarray(MAP_COLORS[np.asarray(grey)])


def _blend_masks(image: Image.Image, segments: Segments) -> Image.Image:
    pixels = np.asarray(image).astype(np.float32)
    ids = segments.panoptic_map
    owners = segments.index_map
    is_segment = owners >= 0
    colors = np.array([distinct_color(index) for index in range(len(segments))], dtype=np.float32).reshape(-1, 3)
    pixels[is_segment] = (1 - MASK_OPACITY) * pixels[is_segment] + MASK_OPACITY * colors[owners[is_segment]]
    # A dark seam wherever two neighbours carry different ids.
    seam = np.zeros(ids.shape, dtype=bool)
    seam[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    seam[1:] |= ids[1:] != ids[:-1]
    pixels[seam] *= 0.35
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _choose_labelled(confidence: np.ndarray, what: str) -> list[int]:
    """The rows that are drawn, in order: all, or those of highest confidence and a warning."""
    if len(confidence) <= MAX_LABELS:
        return list(range(len(confidence)))
    warnings.warn(
        f"{len(confidence):,} {what} are more than can be seen: the {MAX_LABELS} surest are drawn.", LeftOutWarning
    )
    return np.sort(np.argsort(-confidence, kind="stable")[:MAX_LABELS]).tolist()


def _label_segments(canvas: _Canvas, segments: Segments) -> None:
    boxes = segments.boxes_xyxy.astype(int)
    for index in _choose_labelled(segments.confidence, "segments"):
        x0, y0, x1, y1 = boxes[index]
        rows, columns = np.nonzero(segments.index_map[y0:y1, x0:x1] == index)
        if len(rows) and segments.class_names[index]:
            # The pixel nearest to the centre of mass lies inside the segment, even in a ring.
            rows, columns = rows + y0, columns + x0
            nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
            name = strip_coco_suffixes(segments.class_names[index])
            canvas.label(name, float(columns[nearest]), float(rows[nearest]), distinct_color(index))


def _draw_detections(canvas: _Canvas, detections: Detections) -> None:
    boxes = clip_boxes(detections.boxes_xyxy, detections.image_size_hw).tolist()
    for index in _choose_labelled(detections.confidence, "detections"):
        x0, y0, x1, y1 = boxes[index]
        color = distinct_color(index + 3)
        x1, y1 = min(x1, canvas.image.width - 1), min(y1, canvas.image.height - 1)
        canvas.path([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)], color)
        text = f"{detections.class_names[index]} {detections.confidence[index]:.2f}"
        canvas.label(text, x0, y0 - canvas.font.size - 6, color)


def _draw_text_lines(canvas: _Canvas, text_lines: TextLines) -> None:
    for index in _choose_labelled(text_lines.confidence, "lines of text"):
        quad, text = text_lines.quads[index], text_lines.texts[index]
        corners = [tuple(point) for point in quad.tolist()]
        canvas.path([*corners, corners[0]], TEXT_LINE_COLOR)
        x, y = quad[:, 0].min(), quad[:, 1].max()
        canvas.label(f"“{text}”", float(x), float(y) + canvas.line_width + 1, TEXT_LINE_COLOR)


def _most_confident(relations: Relations) -> list[int]:
    return np.argsort(-relations.confidence, kind="stable")[:MAX_DRAWN_RELATIONS].tolist()


def _ends(relations: Relations, index: int) -> tuple[np.ndarray, np.ndarray]:
    boxes = relations.object_boxes_xyxy
    subject, object_ = boxes[relations.subject_indices[index]], boxes[relations.object_indices[index]]
    return (subject[:2] + subject[2:]) / 2, (object_[:2] + object_[2:]) / 2


def _draw_arrows(canvas: _Canvas, relations: Relations) -> None:
    if relations.object_boxes_xyxy is not None:
        for index in _most_confident(relations):
            canvas.arrow(*_ends(relations, index), RELATION_COLOR)


def _label_relations(canvas: _Canvas, relations: Relations) -> None:
    plain = [strip_coco_suffixes(name) for name in relations.object_names]
    has_boxes = relations.object_boxes_xyxy is not None
    # An arrow shows which of two persons is meant; without one the number has to.
    names = plain if has_boxes else number_duplicates(plain)
    for row, index in enumerate(_most_confident(relations)):
        subject, object_ = names[relations.subject_indices[index]], names[relations.object_indices[index]]
        text = f"{subject} {relations.predicates[index]} {object_}"
        if has_boxes:
            x, y = np.mean(_ends(relations, index), axis=0).tolist()
            left, _, right, _ = canvas.pen.textbbox((0, 0), text, font=canvas.font)
            canvas.label(text, x - (right - left) / 2, y, RELATION_COLOR)
        else:
            canvas.label(text, 2, 2 + row * (canvas.font.size + 6), RELATION_COLOR)
