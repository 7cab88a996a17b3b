"""Scene graphs from PSGTR, or from any model that is already in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from verbalizers.core.adapters import relations_from_psgtr
from verbalizers.core.checkpoints import CheckpointVerbalizer, from_pretrained
from verbalizers.core.registry import register_verbalizer
from verbalizers.core.sentences import verbalize_relations
from verbalizers.core.structures import Relations
from verbalizers.core.validation import check_range
from verbalizers.core.verbalizer import Verbalizer
from verbalizers.core.vocabularies import COCO_PANOPTIC_NAMES, PSG_PREDICATES

if TYPE_CHECKING:
    import torch

__all__ = ["PSGTRVerbalizer", "TripletVerbalizer", "verbalize_relations"]


@register_verbalizer("scene_graph", "psgtr")
@dataclass(eq=False, kw_only=True)
class PSGTRVerbalizer(CheckpointVerbalizer):
    """PSGTR (arXiv 2207.11247), the released MoAI's scene-graph model, without mmdet.

    Attributes:
        subject_threshold: a triplet is kept when its subject's class score is above this,
        object_threshold: its object's above this
        relation_threshold: and its predicate's above this. The words have a threshold of their own (0.8).
        mask_threshold: probability above which a pixel belongs to an object, where duplicates are compared.
        max_triplets: how many query-predicate pairs are considered.
    """

    subject_threshold: float = 0.5
    object_threshold: float = 0.5
    relation_threshold: float = 0.3
    mask_threshold: float = 0.85
    max_triplets: int = 100
    version: ClassVar[int] = 2  # 2: every box has an area

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "subject_threshold", "object_threshold", "relation_threshold", "mask_threshold")
        check_range(self, "max_triplets", low=1, high=None)

    def _load(self, device: torch.device, dtype: torch.dtype) -> SimpleNamespace:
        import torch

        from verbalizers.psgtr import PSGTRForSceneGraph, PSGTRImageProcessor

        model = from_pretrained(PSGTRForSceneGraph, self.checkpoint, dtype=dtype, use_safetensors=True)
        processor = from_pretrained(PSGTRImageProcessor, self.checkpoint)
        names = tuple(model.config.id2label[index] for index in sorted(model.config.id2label))
        model = model.to(device, memory_format=torch.channels_last)  # convolutions are sooner so
        return SimpleNamespace(model=model.eval(), processor=processor, names=names)

    def _predict_batch(self, loaded: SimpleNamespace, images: list[np.ndarray]) -> list[Relations]:
        model, config = loaded.model, loaded.model.config
        inputs = loaded.processor(images=images, input_data_format="channels_last", return_tensors="pt")
        pixel_values = inputs.pixel_values.to(model.device, model.dtype)
        outputs = model(pixel_values, output_masks=False)
        graphs = loaded.processor.post_process_scene_graph(
            outputs,
            [images[0].shape[:2]] * len(images),
            subject_threshold=self.subject_threshold,
            object_threshold=self.object_threshold,
            relation_threshold=self.relation_threshold,
            mask_threshold=self.mask_threshold,
            max_triplets=self.max_triplets,
            num_thing_classes=config.num_thing_classes,
            draw_masks=partial(model.draw_masks, outputs),
        )
        return [relations_from_psgtr(graph, loaded.names, config.predicate_names) for graph in graphs]


@register_verbalizer("scene_graph", "triplets")
@dataclass(eq=False, kw_only=True)
class TripletVerbalizer(Verbalizer):
    """Any scene-graph model that is a Python callable.

    Attributes:
        model: called with a list of uint8 `(H, W, 3)` RGB arrays; gives one result per image: a `Relations`,
            or OpenPSG's triplet result (`labels`, `rel_pair_idxes`, `rel_dists`; see
            `adapters.relations_from_psgtr`).
        name: stands for the model in fingerprints; change it when the model changes.
        class_names: name of label 1 first.
        predicates: name of score column 1 first.
    """

    model: Callable[[list[np.ndarray]], Sequence[Any]]
    name: str
    class_names: tuple[str, ...] = COCO_PANOPTIC_NAMES
    predicates: tuple[str, ...] = PSG_PREDICATES

    _not_fingerprinted: ClassVar[tuple[str, ...]] = ("model",)  # it counts by `name`

    def __post_init__(self) -> None:
        if not callable(self.model):
            raise ValueError(f"`model` must be callable with a list of images, got {type(self.model).__name__}.")

    def predict(self, images: Sequence[np.ndarray]) -> list[Relations]:
        """Relations of uint8 `(H, W, 3)` RGB images. See `Verbalizer.predict`."""
        return [
            result if isinstance(result, Relations) else relations_from_psgtr(result, self.class_names, self.predicates)
            for result in self.model(list(images))
        ]
