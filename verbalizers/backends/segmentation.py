"""Panoptic segmentation with transformers models."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from verbalizers.core.adapters import segments_from_transformers
from verbalizers.core.checkpoints import CheckpointVerbalizer, from_pretrained
from verbalizers.core.registry import register_verbalizer
from verbalizers.core.segmentation_map import pascal_colors, render_segmentation_map
from verbalizers.core.sentences import verbalize_segments
from verbalizers.core.structures import Segments
from verbalizers.core.validation import check_range
from verbalizers.core.words import strip_coco_suffixes

if TYPE_CHECKING:
    import torch

__all__ = ["TransformersSegmenter", "pascal_colors", "render_segmentation_map", "verbalize_segments"]


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
        check_range(self, "threshold", "mask_threshold", "overlap_mask_area_threshold")

    def _load(self, device: torch.device, dtype: torch.dtype) -> SimpleNamespace:
        import torch
        from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation, AutoProcessor

        model = from_pretrained(AutoModelForUniversalSegmentation, self.checkpoint, dtype=dtype, use_safetensors=True)
        # OneFormer takes its task as text, so its processor is an image processor and a tokenizer.
        needs_task = model.config.model_type == "oneformer"
        processor = from_pretrained(AutoProcessor if needs_task else AutoImageProcessor, self.checkpoint)
        names = {int(index): name for index, name in model.config.id2label.items()}
        fused = {index for index, name in names.items() if strip_coco_suffixes(name) in self.fused_names}
        model = model.to(device, memory_format=torch.channels_last)  # convolutions are sooner so
        return SimpleNamespace(model=model.eval(), processor=processor, needs_task=needs_task, names=names, fused=fused)

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
        if type(processor).__name__.startswith("Mask2Former"):
            settings = (self.threshold, self.mask_threshold, self.overlap_mask_area_threshold)
            return [_segment_mask2former(outputs, i, size, *settings) for i, size in enumerate(target_sizes)]
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


def _segment_mask2former(
    outputs: Any,
    index: int,
    size_hw: tuple[int, int],
    threshold: float,
    mask_threshold: float,
    overlap_mask_area_threshold: float,
) -> dict[str, Any]:
    """What transformers' `post_process_panoptic_segmentation` of Mask2Former gives without fusing, sooner.

    transformers enlarges the masks of all queries before it drops most of them, looks for the best mask with a slow
    `argmax`, and compares the whole map once per segment.

    Args:
        outputs: the model's, float32.
        index: which image of the batch.
        size_hw: that image's height and width.
        threshold: see `TransformersSegmenter`,
        mask_threshold: likewise,
        overlap_mask_area_threshold: likewise.

    Returns:
        `segmentation` int32 `(H, W)`, 0 or -1 = nothing, and `segments_info`.
    """
    import torch
    from torch.nn.functional import interpolate

    scores, labels = outputs.class_queries_logits[index].softmax(-1).max(-1)  # (Q,)
    is_kept = labels.ne(outputs.class_queries_logits.shape[-1] - 1) & (scores > threshold)
    scores, labels = scores[is_kept], labels[is_kept]
    if not len(scores):
        return {"segmentation": torch.full(size_hw, -1, dtype=torch.int32), "segments_info": []}
    logits = outputs.masks_queries_logits[index, is_kept][None]  # (1, N, h, w)
    # By way of the size that transformers scales all models' masks to.
    logits = interpolate(logits, size=(384, 384), mode="bilinear", align_corners=False)
    weighed = interpolate(logits.sigmoid(), size=size_hw, mode="bilinear", align_corners=False)[0]  # (N, H, W)
    weighed *= scores[:, None, None]
    winner = weighed.max(0).indices  # (H, W)
    areas = torch.bincount(winner.flatten(), minlength=len(scores))
    own_areas = (weighed >= mask_threshold).flatten(1).sum(1)
    ratios = (areas / own_areas).tolist()  # NaN and infinity where one of them is 0
    ids, info = torch.zeros(len(scores), dtype=torch.int32), []
    for row, (label, score) in enumerate(zip(labels.tolist(), scores.tolist(), strict=True)):
        if areas[row] > 0 and own_areas[row] > 0 and ratios[row] > overlap_mask_area_threshold:
            ids[row] = len(info) + 1
            info.append({"id": len(info) + 1, "label_id": label, "score": round(score, 6)})
    return {"segmentation": ids.to(winner.device)[winner], "segments_info": info}
