"""A classifier names what a detector found, and what fills the image: hundreds of names for a detector of eighty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from verbalizers.backends.detection import select_detections
from verbalizers.core.boxes import box_iou
from verbalizers.core.checkpoints import CheckpointVerbalizer, from_pretrained
from verbalizers.core.registry import build_verbalizer, register_verbalizer
from verbalizers.core.structures import Detections
from verbalizers.core.validation import check_range

if TYPE_CHECKING:
    import torch

__all__ = ["ClassifiedDetector", "find_activated_box"]

_MAP_SIDE = 128


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
    parts, number = ndimage.label(values >= values.min() + threshold * np.ptp(values))
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
        detector: backend, and its settings, of the detector; None = the whole image is looked at alone.
        threshold: lowest probability at which the classifier's name of a box takes the place of the detector's.
        image_threshold: lowest probability of a name of the whole image.
        activation_threshold: see `find_activated_box`.
        kept_names: what the detector calls so is not classified: the classifier does not know them.
        margin: how much wider a box is on each side when it is classified, in parts of its longer side.
        nms_threshold: of boxes with the same name that overlap by more than this IoU the most confident is kept, and a
            name of the whole image whose box overlaps one of the detector's by as much names that one.
    """

    detector: Mapping[str, Any] | None = None
    threshold: float = 0.5
    image_threshold: float = 0.4
    activation_threshold: float = 0.3
    kept_names: tuple[str, ...] = ("person",)
    margin: float = 0.1
    nms_threshold: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        self.kept_names = tuple(self.kept_names)
        check_range(self, "threshold", "image_threshold", "activation_threshold", "nms_threshold")
        check_range(self, "margin", high=None)
        if self.detector is not None and (
            not isinstance(self.detector, Mapping) or self.detector.get("backend") in (None, self.backend)
        ):
            raise ValueError(
                f"detection/classified expected `detector` to be null or to name a `backend`, got {self.detector!r}."
            )
        self._detector = None if self.detector is None else build_verbalizer("detection", **self.detector)

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
                members = torch.where(loaded.rows == row, by_class, 0.0) / probability[row]
                activation = torch.einsum("c,cd,dhw->hw", members, weight, feature)
                chosen[loaded.names[row]] = float(probability[row]), activation.numpy()
            named.append(chosen)
        return named

    def _join(self, image: np.ndarray, found: Detections, named: _Named) -> Detections:
        """What the detector found under the classifier's names, and what fills the image."""
        boxes, names = found.boxes_xyxy, list(found.class_names)
        confidence = [float(value) for value in found.confidence]
        asked = [row for row, name in enumerate(names) if name not in self.kept_names]
        crops = super().predict([self._crop(image, boxes[row]) for row in asked]) if asked else []
        for row, known in zip(asked, crops, strict=True):
            best = max(known, key=lambda name: known[name][0], default=names[row])
            if best != names[row] and known[best][0] >= self.threshold:
                names[row], confidence[row] = best, known[best][0]
        added = []
        for name, (probability, activation) in named.items():
            if probability < self.image_threshold or name in names:
                continue
            box = find_activated_box(activation, self.activation_threshold, found.image_size_hw)
            overlaps = box_iou(box, boxes[asked])[0] if asked else np.zeros(0)
            if len(overlaps) and overlaps.max() > self.nms_threshold:
                row = asked[int(overlaps.argmax())]
                names[row], confidence[row] = name, probability
            else:
                added.append((box, name, probability))
        everything = Detections(
            np.concatenate([boxes, *(box[None] for box, _, _ in added)]),
            (*names, *(name for _, name, _ in added)),
            np.array([*confidence, *(probability for _, _, probability in added)], np.float32),
            found.image_size_hw,
        )
        return select_detections(everything, 0.0, self.nms_threshold)


#: Names of an image, with their probabilities and maps of activations.
_Named = dict[str, tuple[float, np.ndarray]]
