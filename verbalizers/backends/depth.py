"""Depth, a fifth kind: which object is nearer to the camera than which other.

Written with the registry's public interface alone, as a package of its own would be: no other file of this
repository knows that the kind exists (`backends/__init__.py` imports it, which is what an entry point does for a
package of its own). A verbalizer that answers with a map, and its text, which sees the whole scene.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from verbalizers.core.boxes import box_iou, clip_boxes
from verbalizers.core.checkpoints import CheckpointVerbalizer, from_pretrained
from verbalizers.core.label_map import LabelMap
from verbalizers.core.merging import sure_detections
from verbalizers.core.registry import register_verbalizer, register_words
from verbalizers.core.structures import Relations, Scene
from verbalizers.core.words import WordSettings, list_sentence, number_duplicates, strip_coco_suffixes

if TYPE_CHECKING:
    import torch

__all__ = ["TransformersDepth", "compare_depths", "predict_dense", "scale_nearness", "verbalize_depth"]

DEPTH_OPENING = "The image includes depth relations between objects: "
_TASKS = {"predicted_depth": "depth", "normals": "normal"}
#: Nearness by which two objects must differ for one to be called nearer: a share of the image's depth range.
MIN_GAP = 0.08


def scale_nearness(values: np.ndarray, is_disparity: bool) -> np.ndarray:
    """A model's raw map as a scale on which equal steps look alike, 0 = farthest, 1 = nearest.

    Inverse depth counts as it is, since its scale and shift are unknown; metres as their logarithm. The nearest and
    farthest percent are cut, so that one wild pixel does not set the scale.

    Args:
        values: float `(h, w)`; NaN and infinity count as farthest.
        is_disparity: larger values are nearer (inverse depth); False = larger values are farther (metres).

    Returns:
        float64 `(h, w)` in [0, 1]; zeros where all is as near.
    """
    values = np.asarray(values, dtype=np.float64)
    if not is_disparity:
        values = -np.log(np.maximum(values, 1e-3))
    is_finite = np.isfinite(values)
    low, high = np.percentile(values[is_finite], (1, 99)) if is_finite.any() else (0.0, 0.0)
    scaled = (np.where(is_finite, values, low) - low) / (high - low) if high > low else np.zeros(values.shape)
    return scaled.clip(0, 1)


@register_verbalizer("depth", "transformers")
@dataclass(eq=False, kw_only=True)
class TransformersDepth(CheckpointVerbalizer):
    """Any `AutoModelForDepthEstimation`: Depth Anything, DPT, GLPN, ZoeDepth, Depth Pro ...

    Attributes:
        output: what the model's numbers are: "disparity" (larger = nearer), "metric" (larger = farther), or None =
            what models of its type give.
    """

    output: str | None = None

    version: ClassVar[int] = 2  # maps in the model's resolution, of 16 bits
    # Where the configuration does not say it (Depth Anything's does): by the papers and by the models' code.
    _OUTPUT_OF_TYPE: ClassVar[dict[str, str]] = {
        "dpt": "disparity",
        "glpn": "metric",
        "zoedepth": "metric",
        "depth_pro": "metric",
        "tipsv2_dpt": "metric",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output not in (None, "disparity", "metric"):
            raise ValueError(f"`output` must be 'disparity', 'metric' or None, got {self.output!r}.")

    def _load(self, device: torch.device, dtype: torch.dtype) -> SimpleNamespace:
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation

        model = from_pretrained(AutoModelForDepthEstimation, self.checkpoint, dtype=dtype, use_safetensors=True)
        processor = from_pretrained(AutoImageProcessor, self.checkpoint)
        return SimpleNamespace(
            model=model.to(device).eval(), processor=processor, is_disparity=self._is_disparity(model.config)
        )

    def _is_disparity(self, config: Any) -> bool:
        stated = {"relative": "disparity", "metric": "metric"}.get(getattr(config, "depth_estimation_type", ""))
        output = self.output or stated or self._OUTPUT_OF_TYPE.get(config.model_type)
        if output is None:
            raise ValueError(
                f"whether {config.model_type} tells depth or its inverse is not known. Pass output='disparity' where "
                "larger values are nearer, output='metric' where they are farther."
            )
        return output == "disparity"

    def _predict_batch(self, loaded: SimpleNamespace, images: list[np.ndarray]) -> list[LabelMap]:
        maps = predict_dense(loaded.model, loaded.processor, images, "predicted_depth")
        shares = [scale_nearness(values, loaded.is_disparity) for values in maps]
        return [LabelMap(np.round(65535 * values).astype(np.uint16)) for values in shares]


def predict_dense(model: Any, processor: Any, images: list[np.ndarray], output: str) -> list[np.ndarray]:
    """What a model tells pixel by pixel, in its own resolution at most, in the image's at most.

    Args:
        model: of transformers, for depth or normals.
        processor: its image processor.
        images: uint8 `(H, W, 3)`, all of one size.
        output: what is wanted, "predicted_depth" or "normals".

    Returns:
        float32 `(h, w)` or `(3, h, w)` per image.
    """
    import torch

    post_process = getattr(processor, f"post_process_{_TASKS[output]}_estimation")
    inputs = processor(images=images, input_data_format="channels_last", return_tensors="pt")
    outputs = model(**inputs.to(model.device, model.dtype))
    for name, value in outputs.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            outputs[name] = value.float()
    size_hw = images[0].shape[:2]
    scale = min(1.0, max(outputs[output].shape[-2:]) / max(size_hw))
    map_size_hw = tuple(max(1, round(length * scale)) for length in size_hw)
    options: dict[str, Any] = {"target_sizes": [map_size_hw] * len(images)}
    if "source_sizes" in inspect.signature(post_process).parameters:
        options["source_sizes"] = [size_hw] * len(images)  # of models that pad and must know what to cut off
    maps = [result[output].cpu().numpy() for result in post_process(outputs, **options)]
    return [values.reshape(*values.shape[: -2 if output == "normals" else 0], *map_size_hw) for values in maps]


def compare_depths(depth_map: LabelMap, scene: Scene, settings: WordSettings | None = None) -> Relations:
    """Nearer / farther relations between the objects of a scene.

    Objects are the named segments, then detections that are no segment again; where there is neither, those of
    the scene graph. Every object is compared with the next one behind it whose distance differs by MIN_GAP, which
    gives the whole order in few relations. The subject is the object that comes first in the scene.

    Args:
        depth_map: the kind's finding.
        scene: what else was found.
        settings: `detection_threshold` counts.

    Returns:
        Relations "nearer than" and "farther than", the widest gap first; their confidence is the gap.
    """
    names, nearness, boxes = _locate_objects(depth_map, scene, settings or WordSettings())
    order = np.argsort(-nearness, kind="stable")
    found: list[tuple[float, int, int, str]] = []
    for position, near in enumerate(order):
        behind = [far for far in order[position + 1 :] if nearness[near] - nearness[far] >= MIN_GAP]
        if behind:
            gap, far = float(nearness[near] - nearness[behind[0]]), behind[0]
            found.append((gap, near, far, "nearer than") if near < far else (gap, far, near, "farther than"))
    found.sort(key=lambda entry: -entry[0])
    gaps, subjects, objects, predicates = zip(*found, strict=True) if found else ((), (), (), ())
    return Relations(tuple(names), subjects, objects, predicates, gaps, boxes)


def _locate_objects(
    depth_map: LabelMap, scene: Scene, settings: WordSettings
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, nearness `(N,)` in [0, 1] and boxes `(N, 4)` of the objects of a scene."""
    shares = depth_map.read_shares()
    names: list[str] = []
    nearness: list[float] = []
    boxes = np.zeros((0, 4), dtype=np.float32)
    if scene.segments is not None:
        segments = scene.segments
        kept = [i for i, name in enumerate(segments.class_names) if name and segments.pixel_counts[i]]
        for index in kept:
            pixels = np.nonzero(segments.panoptic_map == segments.segment_ids[index])
            nearness.append(_nearness_at(shares, *pixels, segments.image_size_hw))
        names = [strip_coco_suffixes(segments.class_names[i]) for i in kept]
        boxes = segments.boxes_xyxy[kept]
    further: list[tuple[str, np.ndarray]] = []
    if scene.detections is not None:
        said = sure_detections(scene.detections, settings.detection_threshold)
        further = list(zip(said.class_names, said.boxes_xyxy, strict=True))
    elif not names and scene.relations is not None and scene.relations.object_boxes_xyxy is not None:
        entries = zip(scene.relations.object_names, scene.relations.object_boxes_xyxy, strict=True)
        further = [(strip_coco_suffixes(name), box) for name, box in entries if name]
    for name, box in further:
        rivals = [i for i, other in enumerate(names) if other == name]
        if not rivals or box_iou(box, boxes[rivals]).max() <= 0.5:
            names.append(name)
            nearness.append(_nearness_in_box(shares, box, scene.image_size_hw))
            boxes = np.concatenate([boxes, box[None]])
    return names, np.array(nearness, dtype=np.float64), boxes


def _nearness_at(shares: np.ndarray, rows: np.ndarray, columns: np.ndarray, image_size_hw: tuple[int, int]) -> float:
    """Median nearness of pixels of the image, given as int arrays `(P,)`, P at least 1."""
    height, width = shares.shape
    return float(np.median(shares[rows * height // image_size_hw[0], columns * width // image_size_hw[1]]))


def _nearness_in_box(shares: np.ndarray, box_xyxy: np.ndarray, image_size_hw: tuple[int, int]) -> float:
    """Median nearness of a box's middle half: its edges show what is behind the object."""
    x0, y0, x1, y1 = clip_boxes(box_xyxy[None], image_size_hw)[0]
    spans = []
    for low, high, length in ((y0, y1, image_size_hw[0]), (x0, x1, image_size_hw[1])):
        start = min(int(0.75 * low + 0.25 * high), length - 1)
        spans.append(np.arange(start, min(max(start + 1, int(0.25 * low + 0.75 * high)), length)))
    rows, columns = np.meshgrid(*spans, indexing="ij")
    return _nearness_at(shares, rows.ravel(), columns.ravel(), image_size_hw)


@register_words("depth")
def verbalize_depth(depth_map: LabelMap, scene: Scene, settings: WordSettings) -> str:
    """Depth as text: `The image includes depth relations between objects: A is nearer than B, and ...`.

    At most `settings.max_relations` are included, the widest gap first. Objects that share a name are numbered as in
    the scene graph's sentence: `person (#2)`.
    """
    relations = compare_depths(depth_map, scene, settings)
    names = number_duplicates(relations.object_names)
    pairs = zip(relations.subject_indices, relations.predicates, relations.object_indices, strict=True)
    items = [f"{names[subject]} is {predicate} {names[object_]}" for subject, predicate, object_ in pairs]
    return list_sentence(DEPTH_OPENING, items[: settings.max_relations])
