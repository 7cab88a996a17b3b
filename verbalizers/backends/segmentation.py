"""Panoptic segmentation: the models' door, their words and their painted map."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from verbalizers.core.adapters import segments_from_transformers
from verbalizers.core.base import register_verbalizer
from verbalizers.core.boxes import clip_boxes, format_box, normalize_boxes
from verbalizers.core.checkpoints import CheckpointVerbalizer, from_pretrained
from verbalizers.core.structures import Segments
from verbalizers.core.words import BOXES_OPENING, list_sentence, strip_coco_suffixes

if TYPE_CHECKING:
    import torch

__all__ = ["TransformersSegmenter", "pascal_colors", "render_segmentation_map", "verbalize_segments"]

RELEASE_NUM_COLORS = 134  # nothing + the 133 COCO panoptic classes: all the colours that the release knows


def verbalize_segments(segments: Segments | None, compat: bool = False) -> str:
    """Segments in words: `The image includes bounding box coordinates and their objects: [..] name.`.

    Args:
        segments: None gives "".
        compat: speak as the release does. It takes the boxes in ascending id order whatever the order of the
            names, and says nothing at all when an id has no pixels or a class is unknown; ours gives each
            name its own box and leaves out only that segment.
    """
    if segments is None:
        return ""
    if compat:
        return _verbalize_as_released(segments)
    boxes = normalize_boxes(clip_boxes(segments.boxes_xyxy, segments.image_size_hw), segments.image_size_hw)
    entries = zip(segments.class_names, boxes, segments.pixel_counts, strict=True)
    items = [f"{format_box(box)} {strip_coco_suffixes(name)}" for name, box, pixels in entries if name and pixels]
    return list_sentence(BOXES_OPENING, items)


def _verbalize_as_released(segments: Segments) -> str:
    height, width = segments.image_size_hw
    present = [int(i) for i in np.unique(segments.panoptic_map) if i > 0]
    if len(present) < len(segments) or not all(segments.class_names):
        return ""
    everything = Segments(segments.panoptic_map, present, [""] * len(present), np.ones(len(present)))
    # The release multiplies by the float32 reciprocal; dividing could round a tie the other way.
    scale = np.array([1 / width, 1 / height, 1 / width, 1 / height], dtype=np.float32)
    boxes = (everything.boxes_xyxy * scale)[: len(segments)]
    items = [
        f"{format_box(box)} {strip_coco_suffixes(name)}" for name, box in zip(segments.class_names, boxes, strict=True)
    ]
    return list_sentence(BOXES_OPENING, items)


#: Ids below this are coloured by a table of all of them.
_LARGEST_TABLE = 4096


def pascal_colors(indices: np.ndarray) -> np.ndarray:
    """The Pascal VOC colour map for any index below 2**24 (the VOC development kit's bit interleaving).

    Args:
        indices: integers of any shape; 0 is black.

    Returns:
        uint8, `indices.shape + (3,)`, RGB.
    """
    indices = np.asarray(indices, dtype=np.int64)
    colors = np.zeros((*indices.shape, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[..., channel] |= (((indices >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colors


def render_segmentation_map(
    segments: Segments | None, image_size_hw: tuple[int, int] | None = None, compat: bool = False
) -> np.ndarray:
    """Paint each segment id with its Pascal colour: the picture that MoAI's vision tower sees beside the
    photograph.

    Args:
        segments: None = nothing known, a black map of `image_size_hw`.
        image_size_hw: wanted height and width; None = the size of the panoptic map. A different size is
            reached by nearest-neighbour sampling of the ids.
        compat: raise as the release does for ids above 133, which its colour table lacks.

    Returns:
        uint8 `(H, W, 3)` RGB. (The release holds the same colours divided by 255.)

    Raises:
        ValueError: neither segments nor a size is given.
        IndexError: with `compat`, an id above 133.
    """
    if segments is None:
        if image_size_hw is None:
            raise ValueError("expected segments or image_size_hw, got neither. Give the size of the black map.")
        return np.zeros((*image_size_hw, 3), dtype=np.uint8)
    ids = np.maximum(segments.panoptic_map, 0)
    if compat and ids.max() >= RELEASE_NUM_COLORS:
        raise IndexError(f"index {ids.max()} is out of bounds for axis 0 with size {RELEASE_NUM_COLORS}")
    if image_size_hw is not None and tuple(image_size_hw) != segments.image_size_hw:
        (height, width), (new_height, new_width) = segments.image_size_hw, image_size_hw
        rows = np.arange(new_height) * height // new_height
        columns = np.arange(new_width) * width // new_width
        ids = ids[rows[:, None], columns[None, :]]
    # Few distinct ids, many pixels: colour the ids, then look up; sorting pixels is the slow way, for huge ids only.
    if ids.size and ids.max() < _LARGEST_TABLE:
        return pascal_colors(np.arange(ids.max() + 1))[ids]
    distinct, positions = np.unique(ids, return_inverse=True)
    return pascal_colors(distinct)[positions.reshape(ids.shape)]


@register_verbalizer("segmentation", "transformers")
@dataclass(eq=False, kw_only=True)
class TransformersSegmenter(CheckpointVerbalizer):
    """Mask2Former or any other `AutoModelForUniversalSegmentation` with panoptic post-processing.

    Attributes:
        threshold: lowest confidence of a segment (the released MoAI: 0.5).
        mask_threshold: lowest probability of a segment's pixel (the released MoAI: 0.95).
        overlap_mask_area_threshold: a segment is dropped when less than this share of its mask is its own.
        fused_names: class names whose segments become one, e.g. ("sky", "grass"); the released MoAI fuses
            none.
    """

    threshold: float = 0.5
    mask_threshold: float = 0.95
    overlap_mask_area_threshold: float = 0.8
    fused_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.fused_names = tuple(self.fused_names)
        for name in ("threshold", "mask_threshold", "overlap_mask_area_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must lie in [0, 1], got {getattr(self, name)}. It is a probability.")

    def _load(self, device: torch.device, dtype: torch.dtype) -> SimpleNamespace:
        from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation, AutoProcessor

        model = from_pretrained(AutoModelForUniversalSegmentation, self.checkpoint, dtype=dtype, use_safetensors=True)
        # OneFormer is told its task in words, so its processor is an image processor and a tokenizer.
        needs_task = model.config.model_type == "oneformer"
        processor = from_pretrained(AutoProcessor if needs_task else AutoImageProcessor, self.checkpoint)
        names = {int(index): name for index, name in model.config.id2label.items()}
        fused = {index for index, name in names.items() if strip_coco_suffixes(name) in self.fused_names}
        return SimpleNamespace(
            model=model.to(device).eval(), processor=processor, needs_task=needs_task, names=names, fused=fused
        )

    def _predict_batch(self, loaded: SimpleNamespace, images: list[np.ndarray]) -> list[Segments]:
        import torch

        model = loaded.model
        task = {"task_inputs": ["panoptic"] * len(images)} if loaded.needs_task else {}
        inputs = loaded.processor(images=images, input_data_format="channels_last", return_tensors="pt", **task).to(
            model.device, model.dtype
        )
        outputs = model(**inputs)
        for name, value in outputs.items():
            # Probabilities are compared with thresholds: in float32, whatever the model runs in.
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                outputs[name] = value.float()
        size_hw = images[0].shape[:2]
        results = self._post_process(loaded.processor, outputs, [size_hw] * len(images))
        return [segments_from_transformers(r, loaded.names, loaded.fused, size_hw) for r in results]

    def _post_process(self, processor: Any, outputs: Any, target_sizes: list[tuple[int, int]]) -> list[dict]:
        post_process = processor.post_process_panoptic_segmentation
        options = {
            "threshold": self.threshold,
            "mask_threshold": self.mask_threshold,
            "overlap_mask_area_threshold": self.overlap_mask_area_threshold,
            "target_sizes": target_sizes,
            # Fusing is done by our adapter: transformers' gives a later segment the id of an earlier one.
            "label_ids_to_fuse": set(),
        }
        known = inspect.signature(post_process).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in known.values())
        return post_process(outputs, **{k: v for k, v in options.items() if k in known or takes_any})
