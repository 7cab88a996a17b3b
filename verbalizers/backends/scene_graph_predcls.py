"""A scene graph in two steps: others find the objects, a small classifier says how each pair is related."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from verbalizers.core.checkpoints import CheckpointVerbalizer, from_pretrained
from verbalizers.core.named_objects import name_objects
from verbalizers.core.registry import register_verbalizer
from verbalizers.core.structures import Relations, Scene
from verbalizers.core.validation import check_flags, check_range
from verbalizers.core.verbalizer import FindingsReader

if TYPE_CHECKING:
    import torch

__all__ = ["PredClsSceneGraph"]


@register_verbalizer("scene_graph", "predcls")
@dataclass(eq=False, kw_only=True)
class PredClsSceneGraph(FindingsReader, CheckpointVerbalizer):
    """Relations between segments and detections by `verbalizers.predcls`; reads no pixel.

    Reads what segmentation and detection found in the same image; one of them must be there. Objects whose names the
    checkpoint does not know are left out.

    Attributes:
        threshold: lowest probability of a relation. The words have a threshold of their own (0.8).
        max_relations: how many are told at most, the surest first.
        detection_threshold: lowest confidence of a detection that takes part.
        merge_iou: a detection that overlaps a segment of its name by this much is the same object (`merging`).
        detections_first: such an object has the detection's name and box, even where the segment has another name
            (`merging.find_covering`).
    """

    threshold: float = 0.5
    max_relations: int = 30
    detection_threshold: float = 0.5
    merge_iou: float = 0.5
    detections_first: bool = False

    uses: ClassVar[tuple[str, ...]] = ("segmentation", "detection")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "threshold", "detection_threshold")
        check_range(self, "merge_iou", is_open=True)
        check_flags(self, "detections_first")
        check_range(self, "max_relations", high=None)

    def _load(self, device: torch.device, dtype: torch.dtype) -> SimpleNamespace:
        from verbalizers.predcls import PredClsForSceneGraph

        model = from_pretrained(PredClsForSceneGraph, self.checkpoint, dtype=dtype, use_safetensors=True)
        labels = {name: int(index) for index, name in model.config.id2label.items()}
        symmetric = set(model.config.symmetric_predicates)
        is_symmetric = np.array([name in symmetric for name in model.config.predicate_names], dtype=bool)
        return SimpleNamespace(model=model.to(device).eval(), labels=labels, is_symmetric=is_symmetric)

    def predict_with(self, images: Sequence[np.ndarray], scenes: Sequence[Scene]) -> list[Relations]:
        """Relations between segments and detections, the surest first; the images are not read.

        Raises:
            ValueError: a scene has neither segments nor detections.
        """
        import torch

        loaded = self.load()
        with self._on_device(loaded), torch.inference_mode():
            return [self._relate(loaded, scene) for scene in scenes]

    def _predict_batch(self, loaded: Any, images: list[np.ndarray]) -> list[Relations]:
        return self.predict(images)

    def _relate(self, loaded: SimpleNamespace, scene: Scene) -> Relations:
        import torch

        from verbalizers.predcls import measure_pairs

        found = name_objects(
            scene, self.detection_threshold, self.merge_iou, "scene_graph/predcls", self.detections_first
        )
        measures = measure_pairs(found.boxes_xyxy / found.stride, found.object_map)
        known = np.array([index for index, name in enumerate(found.names) if name in loaded.labels], dtype=np.int64)
        labels = np.array([loaded.labels[found.names[index]] for index in known], dtype=np.int64)
        pairs = *np.meshgrid(labels, labels, indexing="ij"), measures[known[:, None], known]
        logits = loaded.model(*(torch.from_numpy(array).to(loaded.model.device) for array in pairs))
        scores, chosen = _choose_predicates(logits.float().softmax(dim=-1)[..., 1:].cpu().numpy(), loaded.is_symmetric)
        order = np.argsort(-scores, axis=None, kind="stable")
        order = order[scores.ravel()[order] >= np.float32(self.threshold)][: self.max_relations]
        subjects, objects = (known[side] for side in np.unravel_index(order, scores.shape))
        kept = np.unique(np.concatenate([subjects, objects]))
        names = loaded.model.config.predicate_names
        return Relations(
            object_names=tuple(found.names[index] for index in kept),
            subject_indices=np.searchsorted(kept, subjects),
            object_indices=np.searchsorted(kept, objects),
            predicates=tuple(names[index] for index in chosen.ravel()[order]),
            confidence=scores.ravel()[order],
            object_boxes_xyxy=found.boxes_xyxy[kept],
        )


def _choose_predicates(probabilities: np.ndarray, is_symmetric: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest predicate of each ordered pair, an object with itself left out.

    Which of two equal things is named first is a matter of taste: a symmetric predicate has the probability of both
    directions together, in the likelier one.

    Args:
        probabilities: float32 `(K, K, R)`, subject first.
        is_symmetric: bool `(R,)`.

    Returns:
        Its probability, -1 for an object with itself, float32 `(K, K)`, and its number, int64 `(K, K)`.
    """
    number = len(probabilities)
    there, back = probabilities, probabilities.swapaxes(0, 1)
    comes_first = np.arange(number)[:, None, None] < np.arange(number)[:, None]
    is_told = (there > back) | ((there == back) & comes_first)
    probabilities = np.where(is_symmetric, np.where(is_told, (there + back).clip(max=1), 0), there)
    chosen = probabilities.argmax(axis=-1) if probabilities.size else np.zeros((number, number), np.int64)
    scores = np.take_along_axis(probabilities, chosen[..., None], axis=-1)[..., 0] if probabilities.size else chosen
    return np.where(np.eye(number, dtype=bool), np.float32(-1), scores).astype(np.float32), chosen
