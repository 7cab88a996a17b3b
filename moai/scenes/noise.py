"""What goes wrong: from a scene's truth to what real verbalizers might find (missed, doubled and shifted boxes, wrong
names, missed and invented relations, misread letters), and from a painted image to what people's cameras give (grey,
dark or bright, in a frame).
"""

from dataclasses import dataclass
from random import Random

import numpy as np

from moai.scenes.vocabulary import GROUPS, OBJECT_CLASSES, PREDICATES, STUFF_NAMES
from verbalizers.core.structures import Detections, Relations, Scene, Segments, TextLines

__all__ = ["ImageNoise", "NoiseRates", "add_noise", "sample_image_noise", "spoil_image"]


@dataclass(frozen=True, slots=True)
class NoiseRates:
    """Probabilities at strength 1.

    Attributes:
        miss: a segment or detection is not found.
        rename: it gets another name (mostly of its own kind).
        double: it is found twice.
        shift: it is shifted or scaled.
        max_shift: largest shift, in parts of the box's side.
        spurious: something is detected that is not there, per scene.
        miss_relation: a relation is not found.
        change_predicate: it gets another predicate.
        spurious_relation: a relation is invented, per scene.
        miss_line: a line of text is not found.
        misread_letter: a letter is misread, dropped or doubled.
    """

    miss: float = 0.06
    rename: float = 0.04
    double: float = 0.05
    shift: float = 0.5
    max_shift: float = 0.1
    spurious: float = 0.12
    miss_relation: float = 0.15
    change_predicate: float = 0.05
    spurious_relation: float = 0.15
    miss_line: float = 0.04
    misread_letter: float = 0.02


_LOOK_ALIKES: dict[str, str] = {
    **{"O": "0DQ", "0": "OD", "I": "1lT", "1": "Il7", "l": "1I", "S": "5", "5": "S6", "B": "8E", "8": "B3", "Z": "2"},
    **{
        "2": "Z",
        "G": "6C",
        "6": "G8",
        "E": "F",
        "F": "EP",
        "C": "GO",
        "U": "V",
        "V": "UY",
        "M": "N",
        "N": "M",
        "P": "F",
    },
    **{"R": "P", "Q": "O", "D": "O", "T": "I", "Y": "V", "a": "o", "o": "ac", "e": "c", "c": "e", "n": "h", "h": "n"},
    **{"u": "v", "v": "u", "i": "l", "t": "f", "f": "t", "g": "q", "q": "g", "b": "h", "m": "n", "3": "8", "4": "A"},
    **{"7": "1", "9": "g", "A": "4", "W": "VV", "w": "vv", "r": "t", "s": "5", "d": "cl", "y": "v", "K": "X"},
}
_PREDICATE_MIXUPS: dict[str, tuple[str, ...]] = {
    "standing on": ("on", "walking on"),
    "walking on": ("standing on", "on"),
    "running on": ("walking on",),
    "sitting on": ("on",),
    "driving on": ("parked on", "on"),
    "parked on": ("driving on", "on"),
    "flying over": ("over",),
    "over": ("flying over", "in front of"),
    "on": ("attached to", "beside"),
    "in": ("on",),
    "holding": ("beside", "in front of"),
    "hanging from": ("attached to", "in front of"),
    "attached to": ("hanging from", "on"),
    "beside": ("in front of",),
    "in front of": ("beside",),
    "riding": ("on",),
    "wearing": ("holding",),
}


class _Noise:
    """One scene's errors; all randomness comes from `rng`."""

    def __init__(self, rng: Random, rates: NoiseRates, strength: float) -> None:
        self.rng, self.rates, self.strength = rng, rates, strength

    def happens(self, rate: float) -> bool:
        return self.rng.random() < min(rate * self.strength, 0.95)

    def confidence(self, low: float, high: float) -> float:
        """Falls from 1 with growing strength."""
        return 1.0 - min(self.strength, 1.0) * (1.0 - self.rng.uniform(low, high))

    def other_name(self, name: str) -> str:
        if name in STUFF_NAMES:
            return self.rng.choice(STUFF_NAMES)
        if name in OBJECT_CLASSES and self.rng.random() < 0.8:
            return self.rng.choice(GROUPS[OBJECT_CLASSES[name].group]).name
        return self.rng.choice(tuple(OBJECT_CLASSES))

    def name(self, name: str) -> str:
        return self.other_name(name) if self.happens(self.rates.rename) else name

    def jitter(self) -> tuple[float, float, float, float]:
        """Shift of the four sides of a box in parts of its width and height; zeros when nothing happens."""
        if not self.happens(self.rates.shift):
            return 0.0, 0.0, 0.0, 0.0
        reach = self.rates.max_shift * min(self.strength, 3.0)
        dx, dy = self.rng.uniform(-reach, reach), self.rng.uniform(-reach, reach)
        grow = self.rng.uniform(-0.5 * reach, 0.5 * reach)
        return dx - grow, dy - grow, dx + grow, dy + grow


def _move_mask(mask: np.ndarray, box: list[float], jitter: tuple[float, float, float, float]) -> np.ndarray:
    """Resample the part of a mask inside `box` so that it fills the shifted box; cut at the image's border."""
    x0, y0, x1, y1 = (int(v) for v in box)
    width, height = x1 - x0, y1 - y0
    new_x0, new_x1 = round(x0 + jitter[0] * width), round(x1 + jitter[2] * width)
    new_y0, new_y1 = round(y0 + jitter[1] * height), round(y1 + jitter[3] * height)
    new_x1, new_y1 = max(new_x1, new_x0 + 1), max(new_y1, new_y0 + 1)
    columns = np.arange(max(new_x0, 0), min(new_x1, mask.shape[1]))
    rows = np.arange(max(new_y0, 0), min(new_y1, mask.shape[0]))
    moved = np.zeros_like(mask)
    source_columns = x0 + (columns - new_x0) * width // (new_x1 - new_x0)
    source_rows = y0 + (rows - new_y0) * height // (new_y1 - new_y0)
    moved[rows[:, None], columns] = mask[source_rows[:, None], source_columns]
    return moved


def _noisy_segments(segments: Segments, noise: _Noise) -> Segments:
    painted = np.zeros_like(segments.panoptic_map)
    ids, names, confidence = [], [], []

    def add(mask: np.ndarray, name: str) -> None:
        if mask.any():
            ids.append(len(ids) + 1)
            names.append(name)
            confidence.append(noise.confidence(0.6, 1.0))
            painted[mask] = len(ids)

    boxes = segments.boxes_xyxy.tolist()
    # Stuff first, so that shifted things lie on top of it.
    order = sorted(range(len(boxes)), key=lambda k: segments.class_names[k] not in STUFF_NAMES)
    for k in order:
        name = segments.class_names[k]
        if noise.happens(noise.rates.miss):
            continue
        mask = segments.panoptic_map == segments.segment_ids[k]
        is_stuff = name in STUFF_NAMES
        jitter = (0.0, 0.0, 0.0, 0.0) if is_stuff else noise.jitter()
        if any(jitter) and mask.any():
            mask = _move_mask(mask, boxes[k], jitter)
        name = noise.name(name)
        if not is_stuff and noise.happens(noise.rates.double):
            x0, y0, x1, y1 = boxes[k]
            cut = int(y0 + noise.rng.uniform(0.35, 0.65) * (y1 - y0))
            rest = mask.copy()
            rest[:cut] = False
            mask[cut:] = False
            add(rest, name if noise.rng.random() < 0.7 else noise.other_name(name))
        add(mask, name)
    shuffled = list(range(len(ids)))
    noise.rng.shuffle(shuffled)
    return Segments(
        panoptic_map=painted,
        segment_ids=tuple(ids[k] for k in shuffled),
        class_names=tuple(names[k] for k in shuffled),
        confidence=np.array([confidence[k] for k in shuffled], dtype=np.float32),
    )


def _noisy_detections(detections: Detections, noise: _Noise) -> Detections:
    height, width = detections.image_size_hw
    found: list[tuple[list[float], str, float]] = []

    def add(box: list[float], name: str, confidence: float) -> None:
        x0, y0, x1, y1 = box
        sides = x1 - x0, y1 - y0
        box = [v + j * sides[k % 2] for k, (v, j) in enumerate(zip(box, noise.jitter(), strict=True))]
        limits = (width, height, width, height)
        found.append(([min(max(v, 0.0), limit) for v, limit in zip(box, limits, strict=True)], name, confidence))

    for box, name in zip(detections.boxes_xyxy.tolist(), detections.class_names, strict=True):
        if noise.happens(noise.rates.miss):
            continue
        name = noise.name(name)
        add(box, name, noise.confidence(0.5, 1.0))
        if noise.happens(noise.rates.double):
            add(box, name, noise.confidence(0.45, 0.9))
    if noise.happens(noise.rates.spurious):
        side_x, side_y = noise.rng.uniform(0.1, 0.4) * width, noise.rng.uniform(0.1, 0.4) * height
        x, y = noise.rng.uniform(0, width - side_x), noise.rng.uniform(0, height - side_y)
        add([x, y, x + side_x, y + side_y], noise.rng.choice(tuple(OBJECT_CLASSES)), noise.confidence(0.45, 0.8))
    noise.rng.shuffle(found)
    return Detections(
        boxes_xyxy=np.array([box for box, _, _ in found], dtype=np.float32).reshape(-1, 4),
        class_names=tuple(name for _, name, _ in found),
        confidence=np.array([confidence for _, _, confidence in found], dtype=np.float32),
        image_size_hw=detections.image_size_hw,
    )


def _noisy_relations(relations: Relations, noise: _Noise) -> Relations:
    names = tuple(noise.name(name) for name in relations.object_names)
    rows: list[tuple[int, str, int, float]] = []
    ends = zip(relations.subject_indices.tolist(), relations.predicates, relations.object_indices.tolist(), strict=True)
    for subject, predicate, target in ends:
        if noise.happens(noise.rates.miss_relation):
            continue
        if noise.happens(noise.rates.change_predicate):
            predicate = noise.rng.choice(_PREDICATE_MIXUPS.get(predicate, PREDICATES))
        rows.append((subject, predicate, target, noise.confidence(0.82, 1.0)))
    if len(names) >= 2 and noise.happens(noise.rates.spurious_relation):
        subject, target = noise.rng.sample(range(len(names)), 2)
        predicate = noise.rng.choice(("on", "beside", "in front of", "over", "in"))
        rows.append((subject, predicate, target, noise.confidence(0.8, 0.9)))
    noise.rng.shuffle(rows)
    return Relations(
        object_names=names,
        subject_indices=np.array([row[0] for row in rows], dtype=np.int64),
        object_indices=np.array([row[2] for row in rows], dtype=np.int64),
        predicates=tuple(row[1] for row in rows),
        confidence=np.array([row[3] for row in rows], dtype=np.float32),
        object_boxes_xyxy=relations.object_boxes_xyxy,
    )


def _misread(text: str, noise: _Noise) -> str:
    letters = []
    for letter in text:
        if not noise.happens(noise.rates.misread_letter):
            letters.append(letter)
            continue
        draw = noise.rng.random()
        if draw < 0.7 and letter in _LOOK_ALIKES:
            letters.append(noise.rng.choice(_LOOK_ALIKES[letter]))
        elif draw < 0.85:
            letters.append(letter * 2)
    return "".join(letters) or text


def _noisy_text_lines(text_lines: TextLines, noise: _Noise) -> TextLines:
    kept = [k for k in range(len(text_lines.texts)) if not noise.happens(noise.rates.miss_line)]
    return TextLines(
        quads=text_lines.quads[kept].reshape(-1, 4, 2),
        texts=tuple(_misread(text_lines.texts[k], noise) for k in kept),
        confidence=np.array([noise.confidence(0.87, 1.0) for _ in kept], dtype=np.float32),
    )


def add_noise(
    truth: Scene,
    rng: Random | np.random.Generator | int,
    strength: float = 1.0,
    rates: NoiseRates = NoiseRates(),
) -> Scene:
    """What imperfect verbalizers might have found in this scene.

    Args:
        truth: a scene's truth; it is not changed.
        rng: a `random.Random` or numpy generator (advanced), or a seed.
        strength: multiplies every rate; 0 gives the truth back, 1 is a good verbalizer, 3 a poor one.
        rates: how often what goes wrong at strength 1.

    Raises:
        ValueError: negative strength.
    """
    if strength < 0:
        raise ValueError(f"`strength` must be at least 0, got {strength}. 0 means no noise.")
    if strength == 0:
        return truth
    if isinstance(rng, np.random.Generator):
        rng = Random(int(rng.integers(2**63)))
    elif not isinstance(rng, Random):
        rng = Random(int(rng))
    noise = _Noise(rng, rates, strength)
    return Scene(
        image_size_hw=truth.image_size_hw,
        segments=None if truth.segments is None else _noisy_segments(truth.segments, noise),
        detections=None if truth.detections is None else _noisy_detections(truth.detections, noise),
        relations=None if truth.relations is None else _noisy_relations(truth.relations, noise),
        text_lines=None if truth.text_lines is None else _noisy_text_lines(truth.text_lines, noise),
    )


@dataclass(frozen=True, slots=True)
class ImageNoise:
    """What is wrong with an image.

    Attributes:
        is_grey: it has no colours.
        brightness: factor of all values.
        contrast: factor of their distances from the middle.
        frame: width of the grey frame's left and upper part, and of all of it, in parts of the image.
        frame_grey: the frame's value, 0 to 255.
    """

    is_grey: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    frame: tuple[float, float, float] = (0.0, 0.0, 0.0)
    frame_grey: int = 128

    def inner_size(self, image_size: int) -> int:
        """Height and width in pixels of what is inside the frame."""
        return image_size - round(self.frame[2] * image_size)

    def corner(self, image_size: int) -> tuple[int, int]:
        """Pixels (x, y) of the inside's upper left corner."""
        return round(self.frame[0] * image_size), round(self.frame[1] * image_size)


def sample_image_noise(rng: Random, share: float) -> ImageNoise | None:
    """Something wrong with an image in `share` of the cases, None in the others."""
    if rng.random() >= share:
        return None
    what = rng.choices(("grey", "light", "frame", "all"), (3, 3, 3, 1))[0]
    light = (rng.uniform(0.55, 1.4), rng.uniform(0.6, 1.2)) if what in ("light", "all") else (1.0, 1.0)
    width = rng.uniform(0.06, 0.3) if what in ("frame", "all") else 0.0
    frame = (rng.uniform(0, width), rng.uniform(0, width), width)
    return ImageNoise(what in ("grey", "all"), *light, frame, rng.randint(0, 255))


def spoil_image(image: np.ndarray, image_size: int, noise: ImageNoise) -> np.ndarray:
    """Apply noise to an image and set it in its frame.

    Args:
        image: uint8 (S, S, 3) of the inner size.
        image_size: height and width of the result in pixels.
        noise: what goes wrong.
    """
    pixels = image.astype(np.float32)
    if noise.is_grey:
        pixels = (pixels @ np.array([0.299, 0.587, 0.114], np.float32))[..., None].repeat(3, axis=2)
    pixels = np.clip(((pixels - 128) * noise.contrast + 128) * noise.brightness, 0, 255).astype(np.uint8)
    framed = np.full((image_size, image_size, 3), noise.frame_grey, np.uint8)
    x, y = noise.corner(image_size)
    framed[y : y + len(pixels), x : x + len(pixels)] = pixels
    return framed
