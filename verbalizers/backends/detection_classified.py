"""A classifier names what a detector found, and what fills the image: hundreds of names for a detector of eighty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from verbalizers.backends.detection import select_detections
from verbalizers.core.boxes import box_area, box_iou
from verbalizers.core.checkpoints import CheckpointVerbalizer, from_pretrained
from verbalizers.core.registry import build_verbalizer, register_verbalizer
from verbalizers.core.structures import Detections
from verbalizers.core.validation import check_range, checked_names

if TYPE_CHECKING:
    import torch

__all__ = ["ClassifiedDetector", "find_activated_box"]

_MAP_SIDE, _INSIDE = 128, 0.8
_SAME_PLACE = 0.3  # IoU of a box with one of a map, which is coarse


def find_activated_box(activation: np.ndarray, threshold: float, size_hw: tuple[int, int]) -> np.ndarray:
    """The box of the largest connected part of a class's activation map (arXiv 1512.04150).

    Args:
        activation: float `(h, w)`, of the whole image.
        threshold: where the part begins, 0 = the map's lowest value, 1 = its highest.
        size_hw: the image's height and width in pixels.

    Returns:
        float32 `(4,)`: x0, y0, x1, y1 in pixels.
    """
    from scipy import ndimage

    enlarged = Image.fromarray(activation.astype(np.float32)).resize((_MAP_SIDE,) * 2, Image.Resampling.BILINEAR)
    values = np.asarray(enlarged)
    parts, number = ndimage.label(values >= min(values.min() + threshold * np.ptp(values), values.max()))
    largest = 1 + int(np.argmax(ndimage.sum_labels(np.ones_like(values), parts, range(1, number + 1))))
    rows, columns = np.nonzero(parts == largest)
    height, width = size_hw
    box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / _MAP_SIDE
    return (box * np.array([width, height, width, height])).astype(np.float32)


@register_verbalizer("detection", "classified")
@dataclass(eq=False, kw_only=True)
class ClassifiedDetector(CheckpointVerbalizer):
    """A classifier looks at what a detector found and, with its map of activations, at the whole image.

    Attributes:
        detector: backend, and its settings, of the detector; None = the whole image is looked at alone. It runs where
            the classifier does (`device`, `offload`), unless its settings say otherwise.
        threshold: lowest probability at which the classifier's name of a box takes the place of the detector's.
        unknown_threshold: likewise where the classifier has no class of the detector's name and cannot confirm it.
        image_threshold: lowest probability of a name of the whole image.
        activation_threshold: see `find_activated_box`.
        kept_names: what the detector calls so is not classified: of people a classifier of ImageNet names the clothes.
        margin: how much wider a box is on each side when it is classified, in parts of its longer side.
        nms_threshold: of boxes with the same name that overlap by more than this IoU the most confident is kept.
    """

    detector: Mapping[str, Any] | None = None
    threshold: float = 0.5
    unknown_threshold: float = 0.7
    image_threshold: float = 0.4
    activation_threshold: float = 0.3
    kept_names: tuple[str, ...] = ("person",)
    margin: float = 0.1
    nms_threshold: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        self.kept_names = checked_names(self.kept_names, "kept_names")
        check_range(self, "threshold", "unknown_threshold", "image_threshold", "activation_threshold", "nms_threshold")
        check_range(self, "margin", high=None)
        if self.detector is not None and (
            not isinstance(self.detector, Mapping) or self.detector.get("backend") in (None, self.backend)
        ):
            raise ValueError(
                f"detection/classified expected `detector` to be null or to name a `backend`, got {self.detector!r}. "
                'Write {"backend": "nanodet", "checkpoint": ...}.'
            )
        where = {"device": self.device} if self.device is not None else {}
        where |= {"offload": True} if self.offload else {}
        self._detector = self.detector and build_verbalizer("detection", **{**where, **self.detector})

    def fingerprint_settings(self) -> dict[str, Any]:
        """See `Verbalizer.fingerprint_settings`: of the detector its own fingerprint."""
        settings = super().fingerprint_settings()
        return settings | {"detector": self._detector and self._detector.fingerprint()}

    def predict(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """See `Verbalizer.predict`."""
        if self._detector is not None:
            found = self._detector.predict(images)
        else:
            found = [Detections(np.zeros((0, 4)), (), np.zeros(0), image.shape[:2]) for image in images]
        named = super().predict([self._crop(image, None) for image in images])
        return [self._join(*each) for each in zip(images, found, named, strict=True)]

    def load(self) -> Any:
        """See `CheckpointVerbalizer.load`: both."""
        if isinstance(self._detector, CheckpointVerbalizer):
            self._detector.load()
        return super().load()

    def unload(self) -> None:
        """See `CheckpointVerbalizer.unload`: both."""
        if isinstance(self._detector, CheckpointVerbalizer):
            self._detector.unload()
        super().unload()

    def _load(self, device: torch.device, dtype: torch.dtype) -> SimpleNamespace:
        import torch

        from verbalizers.efficientnet import EfficientNetLiteForImageClassification

        loader = EfficientNetLiteForImageClassification
        model = from_pretrained(loader, self.checkpoint, dtype=dtype, use_safetensors=True)
        labels = [model.config.id2label[index] for index in range(model.config.num_labels)]
        names = tuple(dict.fromkeys(label for label in labels if label))
        rows = torch.tensor([names.index(label) if label else len(names) for label in labels])
        model = model.to(device, memory_format=torch.channels_last)  # convolutions are sooner so
        return SimpleNamespace(model=model.eval(), names=names, rows=rows)

    def _crop(self, image: np.ndarray, box: np.ndarray | None) -> np.ndarray:
        """An image or a part of it as the classifier reads it: uint8, a square."""
        side = self.load().model.config.image_size
        shown = Image.fromarray(image)
        if box is not None:
            margin = self.margin * max(box[2] - box[0], box[3] - box[1])
            wider = (box + np.array([-margin, -margin, margin, margin])).clip(0, (*shown.size, *shown.size))
            left, top, right, bottom = (round(float(value)) for value in wider)
            shown = shown.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
        return np.asarray(shown.resize((side, side), Image.Resampling.BICUBIC))

    def _predict_batch(self, loaded: SimpleNamespace, images: list[np.ndarray]) -> list[_Named]:
        import torch

        model, num_names = loaded.model, len(loaded.names)
        pixels = (torch.from_numpy(np.stack(images)).float() - model.config.pixel_mean) / model.config.pixel_std
        output = model(pixels.permute(0, 3, 1, 2).to(model.device, model.dtype))
        classes = output.logits.float().softmax(dim=-1).cpu()  # (B, C)
        shares = torch.zeros(len(images), num_names + 1).index_add_(1, loaded.rows, classes)[:, :num_names]
        features, weight = output.features.float().cpu(), model.classifier.weight.float().cpu()
        named = []
        for probability, by_class, feature in zip(shares, classes, features, strict=True):
            chosen = {}
            for row in np.flatnonzero(probability.numpy() >= min(self.threshold, self.image_threshold)):
                members = torch.where(loaded.rows == row, by_class, 0.0) / probability[row].clamp(min=1e-12)
                activation = torch.einsum("c,cd,dhw->hw", members, weight, feature)
                chosen[loaded.names[row]] = float(probability[row]), activation.numpy()
            named.append(chosen)
        return named

    def _join(self, image: np.ndarray, found: Detections, named: _Named) -> Detections:
        """What the detector found under the classifier's names, and what fills the image.

        A name of the whole image whose map lies where a box is names that box, unless it has a name of its own look.
        """
        boxes, names = found.boxes_xyxy, list(found.class_names)
        confidence = found.confidence.astype(np.float32)
        asked = [row for row, name in enumerate(names) if name not in self.kept_names]
        renamed, confirmed = self._look_nearer(image, found, asked)
        for row, (name, probability) in renamed.items():
            names[row], confidence[row] = name, probability
        settled = confirmed | set(renamed)
        added: list[tuple[np.ndarray, str, float]] = []
        for name, (probability, activation) in sorted(named.items(), key=lambda item: -item[1][0]):
            if probability < self.image_threshold or name in names:
                continue
            box = find_activated_box(activation, self.activation_threshold, found.image_size_hw)
            overlaps = box_iou(box, boxes)[0]
            same = [row for row in asked if overlaps[row] > _SAME_PLACE]
            if not settled.isdisjoint(same):
                continue  # the classifier knows that from nearer, or by a surer name
            if same:
                row = max(same, key=lambda row: overlaps[row])
                names[row], confidence[row] = name, probability
                settled.add(row)
            elif not any(box_iou(box, other)[0, 0] > _SAME_PLACE for other, _, _ in added):
                added.append((box, name, probability))
        everything = Detections(
            np.concatenate([boxes, *(box[None] for box, _, _ in added)]),
            (*names, *(name for _, name, _ in added)),
            np.concatenate([confidence, np.array([each[2] for each in added], np.float32)]),
            found.image_size_hw,
        )
        return select_detections(everything, 0.0, self.nms_threshold)

    def _look_nearer(
        self, image: np.ndarray, found: Detections, asked: list[int]
    ) -> tuple[dict[int, tuple[str, float]], set[int]]:
        """The classifier's names of boxes, by row, with their probabilities; and the rows whose names it confirms.

        A name that a box inside another has too is the inner one's: the outer one shows it with the rest.
        """
        known = set(self.load().names)
        crops = super().predict([self._crop(image, found.boxes_xyxy[row]) for row in asked]) if asked else []
        renamed: dict[int, tuple[str, float]] = {}
        confirmed: set[int] = set()
        for row, named in zip(asked, crops, strict=True):
            old = found.class_names[row]
            best = max(named, key=lambda name: named[name][0], default=old)
            threshold = self.threshold if old in known else max(self.threshold, self.unknown_threshold)
            if best in named and named[best][0] >= threshold:
                if best == old:
                    confirmed.add(row)
                else:
                    renamed[row] = best, named[best][0]
        areas = box_area(found.boxes_xyxy)
        for row in sorted(renamed, key=lambda row: -areas[row]):
            name = renamed[row][0]
            for other in range(len(found)):
                its_name = renamed[other][0] if other in renamed else found.class_names[other]
                is_same = other == row or its_name != name or found.class_names[other] == found.class_names[row]
                if not is_same and areas[other] < areas[row] and self._holds(*found.boxes_xyxy[[row, other]]):
                    del renamed[row]
                    break
        return renamed, confirmed

    def _holds(self, outer: np.ndarray, inner: np.ndarray) -> bool:
        """Whether most of a box lies in another that is not nearly the same."""
        low, high = np.maximum(outer[:2], inner[:2]), np.minimum(outer[2:], inner[2:])
        shared = np.prod(np.clip(high - low, 0, None))
        return bool(shared >= _INSIDE * box_area(inner)[0] and box_iou(outer, inner)[0, 0] <= self.nms_threshold)


#: Names of an image, with their probabilities and maps of activations.
_Named = dict[str, tuple[float, np.ndarray]]
