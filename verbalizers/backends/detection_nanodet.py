"""Detection of COCO's 80 kinds of things with NanoDet, quick on a processor without an accelerator."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from verbalizers.backends.detection import select_detections
from verbalizers.core.boxes import nms_indices
from verbalizers.core.checkpoints import CheckpointVerbalizer, from_pretrained
from verbalizers.core.registry import register_verbalizer
from verbalizers.core.structures import Detections
from verbalizers.core.validation import check_range

if TYPE_CHECKING:
    import torch

__all__ = ["NanoDetDetector", "fit_into_square"]


def fit_into_square(image: np.ndarray, side: int, scale: float = 1.0) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Shrink or enlarge an image so that its longer side is `scale * side`, centred in a black square.

    Args:
        image: uint8 `(H, W, 3)`.
        side: of the square, in pixels.
        scale: share of the square's side that the image's longer side takes.

    Returns:
        uint8 `(side, side, 3)`, and factor and offset x, y of the square's pixels: `square = factor * image + offset`.
    """
    factor = scale * side / max(image.shape[:2])
    height, width = (max(1, round(factor * pixels)) for pixels in image.shape[:2])
    top, left = (side - height) // 2, (side - width) // 2
    square = np.zeros((side, side, 3), np.uint8)
    shrunk = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    square[top : top + height, left : left + width] = shrunk
    return square, (factor, float(left), float(top))


@register_verbalizer("detection", "nanodet")
@dataclass(eq=False, kw_only=True)
class NanoDetDetector(CheckpointVerbalizer):
    """NanoDet-g (https://github.com/RangiLyu/nanodet): the 80 kinds of things of COCO.

    Attributes:
        threshold: lowest confidence.
        scales: sizes at which an image is shown, each a share of the network's square. A thing that fills the image is
            found more surely when it is shown smaller.
        nms_threshold: of boxes with the same name that overlap by more than this IoU the most confident is kept.
        nms_threshold_across: likewise of boxes with any names.
        max_detections: how many are kept at most.
    """

    threshold: float = 0.45
    scales: tuple[float, ...] = (1.0, 0.6)
    nms_threshold: float = 0.6
    nms_threshold_across: float = 0.85
    max_detections: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        self.scales = tuple(self.scales)
        check_range(self, "threshold", "nms_threshold", "nms_threshold_across")
        check_range(self, "max_detections", low=1, high=None)
        if not self.scales or not all(0 < scale <= 1 for scale in self.scales):
            raise ValueError(f"`scales` must hold numbers above 0 and up to 1, got {self.scales}.")

    def _load(self, device: torch.device, dtype: torch.dtype) -> SimpleNamespace:
        import torch

        from verbalizers.nanodet import NanoDetForObjectDetection

        model = from_pretrained(NanoDetForObjectDetection, self.checkpoint, dtype=dtype, use_safetensors=True)
        names = tuple(model.config.id2label[index] for index in range(model.config.num_labels))
        model = model.to(device, memory_format=torch.channels_last)  # convolutions are sooner so
        return SimpleNamespace(model=model.eval(), names=names)

    def _predict_batch(self, loaded: SimpleNamespace, images: list[np.ndarray]) -> list[Detections]:
        import torch

        model, side = loaded.model, loaded.model.config.image_size
        looks = [fit_into_square(image, side, scale) for image in images for scale in self.scales]
        pixels = torch.from_numpy(np.stack([square for square, _ in looks])[..., ::-1].copy())  # blue, green, red
        mean, std = (torch.tensor(values) for values in (model.config.pixel_mean, model.config.pixel_std))
        pixels = ((pixels - mean) / std).permute(0, 3, 1, 2)  # (B * scales, 3, side, side)
        output = model(pixels.to(model.device, model.dtype))
        confidence, labels = output.logits.float().sigmoid().max(dim=-1)  # (B * scales, P)
        arrays = [tensor.float().cpu().numpy() for tensor in (output.boxes, confidence, labels)]
        per_image = len(self.scales)
        found = []
        for start in range(0, len(looks), per_image):
            rows = slice(start, start + per_image)
            placings = [placing for _, placing in looks[rows]]
            found.append(self._join_looks(*(array[rows] for array in arrays), placings, images[0].shape[:2], loaded))
        return found

    def _join_looks(
        self,
        boxes: np.ndarray,
        confidence: np.ndarray,
        labels: np.ndarray,
        placings: list[tuple[float, float, float]],
        size_hw: tuple[int, int],
        loaded: SimpleNamespace,
    ) -> Detections:
        """One image's detections of all looks `(scales, P, ...)`, in its own pixels."""
        placed = []
        for look, (factor, left, top) in zip(boxes, placings, strict=True):
            placed.append((look - np.array([left, top, left, top], np.float32)) / np.float32(factor))
        is_kept = confidence >= np.float32(self.threshold)
        height, width = size_hw
        within = np.clip(np.stack(placed)[is_kept], 0, np.array([width, height, width, height], np.float32))
        names = tuple(loaded.names[int(label)] for label in labels[is_kept])
        has_area = (within[:, 2:] > within[:, :2]).all(axis=1)
        names = tuple(name for name, keep in zip(names, has_area, strict=True) if keep)
        everything = Detections(within[has_area], names, confidence[is_kept][has_area], size_hw)
        found = select_detections(everything, self.threshold, self.nms_threshold)
        order = nms_indices(found.boxes_xyxy, np.zeros(len(found), np.int64), self.nms_threshold_across)
        order = order[: self.max_detections]
        names = tuple(found.class_names[i] for i in order)
        return Detections(found.boxes_xyxy[order], names, found.confidence[order], size_hw)
