"""Scene graphs: the models' doors and their words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from verbalizers.core.adapters import relations_from_psgtr
from verbalizers.core.base import Verbalizer, register_verbalizer
from verbalizers.core.checkpoints import CheckpointVerbalizer, from_pretrained
from verbalizers.core.structures import Relations
from verbalizers.core.vocabularies import COCO_PANOPTIC_NAMES, PSG_PREDICATES
from verbalizers.core.words import (
    RELATIONS_OPENING,
    WordSettings,
    list_sentence,
    number_duplicates,
    strip_coco_suffixes,
)

if TYPE_CHECKING:
    import torch

__all__ = ["PSGTRVerbalizer", "TripletVerbalizer", "verbalize_relations"]


def verbalize_relations(
    relations: Relations | None,
    threshold: float = WordSettings.relation_threshold,
    max_relations: int = WordSettings.max_relations,
    compat: bool = False,
) -> str:
    """Relations in words: `The image includes relationships between objects: A is on B, and C is holding D.`.

    Objects that share a name are numbered: `person (#2)`.

    Args:
        relations: None gives "".
        threshold: lowest confidence that is said.
        max_relations: how many are said at most, the surest first.
        compat: choose and order as the release does. It says nothing when there are fewer relations than
            min(10, objects), and its order is numpy's partition order; ours says them all, the surest first.
    """
    if relations is None:
        return ""
    choose = _choose_as_released if compat else _choose_surest
    names = number_duplicates([strip_coco_suffixes(name) for name in relations.object_names])
    items = []
    for index in choose(relations, threshold, max_relations):
        subject, object_ = int(relations.subject_indices[index]), int(relations.object_indices[index])
        if relations.object_names[subject] and relations.object_names[object_]:
            items.append(f"{names[subject]} is {relations.predicates[index]} {names[object_]}")
    return list_sentence(RELATIONS_OPENING, items)


def _choose_surest(relations: Relations, threshold: float, max_relations: int) -> list[int]:
    named = [bool(name) for name in relations.object_names]
    is_known = [named[s] and named[o] for s, o in zip(relations.subject_indices, relations.object_indices, strict=True)]
    order = np.argsort(-relations.confidence, kind="stable")
    kept = [int(i) for i in order if relations.confidence[i] >= np.float32(threshold) and is_known[i]]
    return kept[:max_relations]


def _choose_as_released(relations: Relations, threshold: float, max_relations: int) -> list[int]:
    wanted = min(max_relations, len(relations.object_names))
    if len(relations) == 0 or wanted > len(relations):
        return []
    # The release filters argpartition's indices by partition's values, which numpy does not promise to order
    # alike: both are needed to say exactly what it says.
    indices = np.argpartition(relations.confidence, -wanted)[-wanted:]
    scores = np.partition(relations.confidence, -wanted)[-wanted:]
    return [int(i) for i in indices[scores >= np.float32(threshold)]]


@register_verbalizer("scene_graph", "psgtr")
@dataclass(eq=False, kw_only=True)
class PSGTRVerbalizer(CheckpointVerbalizer):
    """PSGTR (arXiv 2207.11247), the released MoAI's scene-graph model, without mmdet.

    Attributes:
        subject_threshold: a triplet is kept when its subject's class score is above this,
        object_threshold: its object's above this
        relation_threshold: and its predicate's above this. The words have a threshold of their own (0.8).
        mask_threshold: probability above which a pixel belongs to an object, where duplicates are compared.
        max_triplets: how many query-predicate pairs are looked at.
    """

    subject_threshold: float = 0.5
    object_threshold: float = 0.5
    relation_threshold: float = 0.3
    mask_threshold: float = 0.85
    max_triplets: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("subject_threshold", "object_threshold", "relation_threshold", "mask_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must lie in [0, 1], got {getattr(self, name)}. It is a probability.")
        if self.max_triplets < 1:
            raise ValueError(f"`max_triplets` must be at least 1, got {self.max_triplets}.")

    def _load(self, device: torch.device, dtype: torch.dtype) -> SimpleNamespace:
        from verbalizers.psgtr import PSGTRForSceneGraph, PSGTRImageProcessor

        model = from_pretrained(PSGTRForSceneGraph, self.checkpoint, dtype=dtype, use_safetensors=True)
        processor = from_pretrained(PSGTRImageProcessor, self.checkpoint)
        names = tuple(model.config.id2label[index] for index in sorted(model.config.id2label))
        return SimpleNamespace(model=model.to(device).eval(), processor=processor, names=names)

    def _predict_batch(self, loaded: SimpleNamespace, images: list[np.ndarray]) -> list[Relations]:
        model, config = loaded.model, loaded.model.config
        inputs = loaded.processor(images=images, input_data_format="channels_last", return_tensors="pt")
        pixel_values = inputs.pixel_values.to(model.device, model.dtype)
        graphs = loaded.processor.post_process_scene_graph(
            model(pixel_values),
            [images[0].shape[:2]] * len(images),
            subject_threshold=self.subject_threshold,
            object_threshold=self.object_threshold,
            relation_threshold=self.relation_threshold,
            mask_threshold=self.mask_threshold,
            max_triplets=self.max_triplets,
            num_thing_classes=config.num_thing_classes,
        )
        return [relations_from_psgtr(graph, loaded.names, config.predicate_names) for graph in graphs]


@register_verbalizer("scene_graph", "triplets")
@dataclass(eq=False, kw_only=True)
class TripletVerbalizer(Verbalizer):
    """Any scene-graph model that is already in your hands: a function or an object that can be called.

    Attributes:
        model: called with a list of uint8 `(H, W, 3)` RGB arrays; gives one result per image: a `Relations`,
            or OpenPSG's triplet result (`labels`, `rel_pair_idxes`, `rel_dists`; see
            `adapters.relations_from_psgtr`).
        name: says which model this is in fingerprints; change it when the model changes.
        class_names: name of label 1 first.
        predicates: name of score column 1 first.
    """

    model: Callable[[list[np.ndarray]], Sequence[Any]]
    name: str
    class_names: tuple[str, ...] = COCO_PANOPTIC_NAMES
    predicates: tuple[str, ...] = PSG_PREDICATES

    def __post_init__(self) -> None:
        if not callable(self.model):
            raise ValueError(f"`model` must be callable with a list of images, got {type(self.model).__name__}.")

    def fingerprint_settings(self) -> dict[str, Any]:
        """The settings; the model counts by `name`."""
        return {k: v for k, v in self.settings().items() if k != "model"}

    def predict(self, images: Sequence[np.ndarray]) -> list[Relations]:
        """Relations of uint8 `(H, W, 3)` RGB images. See `Verbalizer.predict`."""
        return [
            result if isinstance(result, Relations) else relations_from_psgtr(result, self.class_names, self.predicates)
            for result in self.model(list(images))
        ]
