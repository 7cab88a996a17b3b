"""Each verbalizer beside the way in which its library, or this project before, finds the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate
from transformers.models.detr.modeling_detr import DetrMaskHeadSmallConv

from benchmarks.measurement import Spread, paired_ratio, time_alternating
from verbalizers import Verbalizer, build_verbalizer
from verbalizers.backends.detection import Owlv2Detector
from verbalizers.backends.scene_graph import PSGTRVerbalizer
from verbalizers.backends.segmentation import TransformersSegmenter
from verbalizers.core.adapters import relations_from_psgtr
from verbalizers.core.structures import Detections, Relations, Segments, TextLines

__all__ = ["measure_variants"]


class PostProcessedByTransformers(TransformersSegmenter):
    """Mask2Former with transformers' own post-processing."""

    def _post_process(self, processor: Any, outputs: Any, target_sizes: list[tuple[int, int]]) -> list[dict]:
        return processor.post_process_panoptic_segmentation(
            outputs,
            threshold=self.threshold,
            mask_threshold=self.mask_threshold,
            overlap_mask_area_threshold=self.overlap_mask_area_threshold,
            label_ids_to_fuse=set(),
            target_sizes=target_sizes,
        )


class ResizedByTransformers(Owlv2Detector):
    """OWLv2 with transformers' own blur."""

    def _load(self, device: torch.device, dtype: torch.dtype) -> SimpleNamespace:
        loaded = super()._load(device, dtype)
        del loaded.processor.image_processor.resize
        return loaded


class DrawnInFull(PSGTRVerbalizer):
    """PSGTR with all masks, by transformers' mask head, enlarged to the image before anything is measured on them."""

    def _load(self, device: torch.device, dtype: torch.dtype) -> SimpleNamespace:
        loaded = super()._load(device, dtype)
        for head in (loaded.model.head.subject_mask_head, loaded.model.head.object_mask_head):
            head.__class__ = DetrMaskHeadSmallConv
        return loaded

    def _predict_batch(self, loaded: SimpleNamespace, images: list[np.ndarray]) -> list[Relations]:
        model, config, size_hw = loaded.model, loaded.model.config, images[0].shape[:2]
        inputs = loaded.processor(images=images, input_data_format="channels_last", return_tensors="pt")
        outputs = model(inputs.pixel_values.to(model.device, model.dtype))
        for name in ("subject_masks", "object_masks"):
            outputs[name] = interpolate(outputs[name].float(), size=size_hw)
        graphs = loaded.processor.post_process_scene_graph(
            outputs,
            [size_hw] * len(images),
            subject_threshold=self.subject_threshold,
            object_threshold=self.object_threshold,
            relation_threshold=self.relation_threshold,
            mask_threshold=self.mask_threshold,
            max_triplets=self.max_triplets,
            num_thing_classes=config.num_thing_classes,
        )
        return [relations_from_psgtr(graph, loaded.names, config.predicate_names) for graph in graphs]


REFERENCES = {
    ("segmentation", "transformers"): ("transformers' post-processing", PostProcessedByTransformers),
    ("detection", "owlv2"): ("transformers' blur", ResizedByTransformers),
    ("scene_graph", "psgtr"): ("all masks at the image's size", DrawnInFull),
}


def measure_variants(
    verbalizers: Sequence[Verbalizer],
    images: list[np.ndarray],
    batches: Sequence[int],
    num_rounds: int,
    device: torch.device,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, Any]:
    """A table: milliseconds per image of each variant, its ratio to its reference, and how often both find the same."""
    rows, records = [], []
    for name, reference, variants in list_variants(verbalizers):
        for batch in batches:
            chosen = (images * (batch // len(images) + 1))[:batch]
            calls = {"reference": reference, **variants}
            calls = {key: (lambda v=v, chosen=chosen: v.predict(chosen)) for key, v in calls.items()}
            times = time_alternating(calls, num_rounds, device, clock=clock)
            expected = reference.predict(chosen)
            for variant, verbalizer in variants.items():
                found = verbalizer.predict(chosen)
                num_same = sum(finds_the_same(a, b) for a, b in zip(expected, found, strict=True))
                shown = (Spread.of([value / batch for value in times[key]]).shown() for key in ("reference", variant))
                ratio = paired_ratio(times[variant], times["reference"])
                rows.append([f"{name}: {variant}", str(batch), *shown, ratio.shown(2), f"{num_same} of {batch}"])
            records.append({"verbalizer": name, "batch": batch, "times_ms": times})
    header = ["verbalizer", "batch", "reference, ms per image", "ms per image", "ratio", "same predictions"]
    return {"title": "Beside their references", "header": header, "rows": rows, "records": records}


def list_variants(verbalizers: Sequence[Verbalizer]) -> list[tuple[str, Verbalizer, dict[str, Verbalizer]]]:
    """Name, reference and variants of each verbalizer that has a reference."""
    listed = []
    for verbalizer in verbalizers:
        name, settings = f"{verbalizer.kind}/{verbalizer.backend}", verbalizer.settings()
        if (verbalizer.kind, verbalizer.backend) in REFERENCES:
            what, reference = REFERENCES[verbalizer.kind, verbalizer.backend]
            listed.append((name, reference(**settings), {f"against {what}": verbalizer}))
        elif name == "ocr/rapidocr":
            larger = {"shortest_side": 736}  # rapidocr's own
            variants = {"one thread, arena": build_verbalizer("ocr", **larger), "and shortest_side 608": verbalizer}
            listed.append((name, build_verbalizer("ocr", num_threads=0, use_memory_arena=False, **larger), variants))
    return listed


def finds_the_same(first: Any, second: Any) -> bool:
    """Whether two predictions about an image say the same: names, places to a thousandth of a pixel, order."""
    if isinstance(first, Segments):
        return first.class_names == second.class_names and np.array_equal(first.panoptic_map, second.panoptic_map)
    if isinstance(first, Detections):
        return first.class_names == second.class_names and np.allclose(first.boxes_xyxy, second.boxes_xyxy, atol=1e-3)
    if isinstance(first, TextLines):
        return first.texts == second.texts
    return (first.object_names, first.predicates) == (second.object_names, second.predicates) and all(
        np.array_equal(getattr(first, name), getattr(second, name)) for name in ("subject_indices", "object_indices")
    )
