"""Images -> PSGTR's input, and PSGTR's output -> scene graphs.

The post-processing follows OpenPSG as the released MoAI runs it. `compat=True` also follows its slips:

- masks are compared and argmax-ed in bfloat16;
- triplets with the last but one class (COCO: wall-other-merged) are dropped by an index that is off by one;
- where nothing is found, a person that covers the whole image is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from transformers import DetrImageProcessorPil
from transformers.image_transforms import center_to_corners_format

if TYPE_CHECKING:
    from verbalizers.psgtr.modeling_psgtr import PSGTROutput

__all__ = ["PSGTRImageProcessor", "SceneGraph", "Triplets"]

INSTANCE_OFFSET = 1000  # mmdet's encoding of a panoptic map: class + 1000 * index of the object


@dataclass
class Triplets:
    """The K distinct triplets before the objects are merged; row k is the subject, row K + k the object.

    Attributes:
        boxes: float `(2K, 5)`, x0, y0, x1, y1 in pixels of the original image and the class score.
        labels: int64 `(2K,)`, classes counted from 1.
        small_masks: bool `(2K, h, w)`, at the resolution that the model draws.
        size_hw: of the original image.
        pairs: int64 `(K, 2)`, rows of subject and object.
        relation_labels: int64 `(K,)`, predicates counted from 1.
        relation_scores: float `(K, P + 1)`, column 0 = no relation.
    """

    boxes: torch.Tensor
    labels: torch.Tensor
    small_masks: torch.Tensor
    size_hw: tuple[int, int]
    pairs: torch.Tensor
    relation_labels: torch.Tensor
    relation_scores: torch.Tensor

    @property
    def masks(self) -> torch.Tensor:
        """Bool `(2K, H, W)`, at the image's resolution."""
        return _enlarge(self.small_masks, self.size_hw)


@dataclass
class SceneGraph:
    """M merged objects and the R relations between them; the fields that `adapters.relations_from_psgtr`
    reads.

    Attributes:
        labels: int64 `(M,)`, classes counted from 1.
        refine_bboxes: float `(M, 4)`, x0, y0, x1, y1 in pixels of the original image, from the box heads.
        rel_pair_idxes: int64 `(R, 2)`, subject and object.
        rel_dists: float `(R, P + 1)`, column 0 = no relation.
        rels: int64 `(R, 3)`, subject, object, predicate counted from 1.
        object_map: int64 `(h, w)`, the object of each pixel at the resolution that the model draws.
        small_pan_results: int64 `(h, w)`, as `pan_results`.
        size_hw: of the original image.
        triplets: what they were merged from.
    """

    labels: torch.Tensor
    refine_bboxes: torch.Tensor
    rel_pair_idxes: torch.Tensor
    rel_dists: torch.Tensor
    rels: torch.Tensor
    object_map: torch.Tensor
    small_pan_results: torch.Tensor
    size_hw: tuple[int, int]
    triplets: Triplets

    @property
    def masks(self) -> torch.Tensor:
        """Bool `(M, H, W)`, which never overlap."""
        objects = torch.arange(len(self.labels), device=self.object_map.device)
        return _enlarge(self.object_map, self.size_hw) == objects[:, None, None]

    @property
    def pan_results(self) -> torch.Tensor:
        """int64 `(H, W)`, class counted from 0 + 1000 * object; C (void) where nothing is."""
        return _enlarge(self.small_pan_results, self.size_hw)


class PSGTRImageProcessor(DetrImageProcessorPil):
    """DETR's preprocessing (shorter side 800, longer at most 1333, ImageNet statistics) and PSGTR's post-processing."""

    def post_process_scene_graph(
        self,
        outputs: PSGTROutput,
        target_sizes: Sequence[tuple[int, int]],
        subject_threshold: float = 0.5,
        object_threshold: float = 0.5,
        relation_threshold: float = 0.3,
        mask_threshold: float = 0.85,
        duplicate_iou: float = 0.5,
        max_triplets: int = 100,
        num_thing_classes: int = 80,
        compat: bool = False,
        draw_masks: Callable[[int, torch.Tensor], dict[str, torch.Tensor]] | None = None,
    ) -> list[SceneGraph]:
        """Triplets of a batch, merged to scene graphs.

        A pixel of a model's mask stands for a block of the image's: everything is measured on the masks as they were
        drawn, each of their pixels weighted with the size of its block, which gives the same numbers.

        Args:
            outputs: the model's output. The images must not have been padded to a common size.
            target_sizes: original height and width of each image.
            subject_threshold: a triplet is kept when its subject's class score is above this,
            object_threshold: its object's above this
            relation_threshold: and its predicate's above this.
            mask_threshold: probability above which a pixel belongs to a mask.
            duplicate_iou: two equal triplets whose subjects AND objects overlap by more are one; so are two
                things of one class.
            max_triplets: how many query-predicate pairs are considered, those of highest confidence.
            num_thing_classes: classes from this index on are stuff: one region per class.
            compat: follow the released MoAI's slips too (see the module).
            draw_masks: called with an image's index and int64 `(n,)` queries, gives their `subject_masks` and
                `object_masks` `(n, h, w)` (`PSGTRForSceneGraph.draw_masks`). It is asked only for those that decide
                what the graph holds, and `SceneGraph.triplets` are those alone. None = `outputs` has all masks.

        Raises:
            ValueError: the number of sizes is not that of the images.
        """
        if len(target_sizes) != len(outputs.subject_logits):
            raise ValueError(f"expected {len(outputs.subject_logits)} target sizes, got {len(target_sizes)}.")
        graphs = []
        for index, size_hw in enumerate(target_sizes):
            found = _best_triplets(outputs, index, tuple(size_hw), max_triplets)
            is_sure = (found.subject_scores > subject_threshold) & (found.object_scores > object_threshold)
            is_sure &= found.relation_best > relation_threshold
            if compat:  # labels count from 1, the bound from 0: the class before the last is lost
                last = found.num_classes - 1
                is_sure &= (found.subject_labels != last) & (found.object_labels != last)
            found = replace(found, is_sure=is_sure)
            if draw_masks is not None:
                found = found.select(_decides(found))
            found = _with_masks(found, outputs, index, draw_masks, compat)
            found = found.select(_distinct(found, mask_threshold, duplicate_iou))
            triplets, sure = found.as_triplets(mask_threshold), found.select(found.is_sure)
            if len(sure.relation_labels):
                graphs.append(_merge_objects(sure, triplets, mask_threshold, duplicate_iou, num_thing_classes, compat))
            else:
                graphs.append(_empty_graph(found, triplets, compat))
        return graphs


@dataclass
class _Found:
    """K triplets of one image; masks are logits as the model draws them, boxes pixels of the image."""

    queries: torch.Tensor  # (K,)
    subject_labels: torch.Tensor  # (K,) from 1
    object_labels: torch.Tensor
    subject_scores: torch.Tensor  # (K,)
    object_scores: torch.Tensor
    subject_boxes: torch.Tensor  # (K, 4)
    object_boxes: torch.Tensor
    relation_labels: torch.Tensor  # (K,) from 1
    relation_best: torch.Tensor  # (K,)
    relation_scores: torch.Tensor  # (K, P + 1)
    num_classes: int
    size_hw: tuple[int, int]
    is_sure: torch.Tensor | None = None  # (K,)
    subject_masks: torch.Tensor | None = None  # (K, h, w)
    object_masks: torch.Tensor | None = None

    def select(self, keep: torch.Tensor) -> _Found:
        return _Found(
            **{k: v[keep] if isinstance(v, torch.Tensor) else v for k, v in self.__dict__.items()},
        )

    def both(self, name: str) -> torch.Tensor:
        """Subjects' rows, then objects'."""
        return torch.cat([getattr(self, f"subject_{name}"), getattr(self, f"object_{name}")])

    def names(self) -> list[tuple[int, ...]]:
        """Subject, object and predicate of each."""
        columns = (self.subject_labels, self.object_labels, self.relation_labels)
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def as_triplets(self, mask_threshold: float) -> Triplets:
        return Triplets(
            boxes=torch.cat([self.both("boxes"), self.both("scores")[:, None]], dim=1),
            labels=self.both("labels"),
            small_masks=self.both("masks").sigmoid() > mask_threshold,
            size_hw=self.size_hw,
            pairs=torch.arange(2 * len(self.relation_labels)).reshape(2, -1).T,
            relation_labels=self.relation_labels,
            relation_scores=self.relation_scores,
        )


def _best_triplets(outputs: PSGTROutput, index: int, size_hw: tuple[int, int], max_triplets: int) -> _Found:
    """The query-predicate pairs of highest score; one query may have several predicates. Without masks."""
    relation_scores = outputs.relation_logits[index].float().softmax(-1)  # (Q, P + 1)
    num_relations = relation_scores.shape[-1] - 1
    flat = relation_scores[:, 1:].reshape(-1)
    relation_best, places = flat.topk(min(max_triplets, len(flat)))
    queries = places // num_relations
    fields = {}
    height, width = size_hw
    for role in ("subject", "object"):
        scores, labels = outputs[f"{role}_logits"][index].float().softmax(-1)[:, :-1].max(-1)
        boxes = outputs[f"{role}_boxes"][index].float()
        corners = center_to_corners_format(boxes).clamp(0, 1)
        fields[f"{role}_scores"], fields[f"{role}_labels"] = scores[queries], labels[queries] + 1
        fields[f"{role}_boxes"] = corners[queries] * corners.new_tensor([width, height, width, height])
    return _Found(
        **fields,
        queries=queries,
        relation_labels=places % num_relations + 1,
        relation_best=relation_best,
        relation_scores=relation_scores[queries],
        num_classes=outputs.subject_logits.shape[-1] - 1,
        size_hw=size_hw,
    )


def _decides(found: _Found) -> torch.Tensor:
    """Bool `(K,)`: the sure ones, and those of the same names that may show that a sure one is their duplicate."""
    names, is_sure = found.names(), found.is_sure.tolist()
    sure_names = {name for name, sure in zip(names, is_sure, strict=True) if sure}
    return torch.tensor([name in sure_names for name in names], dtype=torch.bool, device=found.is_sure.device)


def _with_masks(found: _Found, outputs: PSGTROutput, index: int, draw_masks: Callable | None, compat: bool) -> _Found:
    queries, rows = found.queries.unique(return_inverse=True)
    drawn = outputs if draw_masks is None else draw_masks(index, queries)
    masks = {}
    for role in ("subject", "object"):
        of_queries = drawn[f"{role}_masks"][index][queries] if draw_masks is None else drawn[f"{role}_masks"]
        of_queries = of_queries.float()
        masks[f"{role}_masks"] = (of_queries.to(torch.float16).to(torch.bfloat16) if compat else of_queries)[rows]
    return replace(found, **masks)


def _sources(length: int, size: int, device: torch.device) -> torch.Tensor:
    """int64 `(size,)`: which of a mask's `length` pixels each of the image's shows along one axis (nearest)."""
    places = torch.arange(length, dtype=torch.float32, device=device)
    return F.interpolate(places[None, None], size=size)[0, 0].long()


def _enlarge(maps: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
    """Maps `(..., h, w)` at the image's resolution."""
    rows, columns = (_sources(n, size, maps.device) for n, size in zip(maps.shape[-2:], size_hw, strict=True))
    return maps[..., rows, :][..., columns]


def _weigh(masks: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
    """Float `(h * w,)`: how many of the image's pixels each pixel of masks `(N, h, w)` stands for."""
    sides = [
        torch.bincount(_sources(n, size, masks.device), minlength=n)
        for n, size in zip(masks.shape[-2:], size_hw, strict=True)
    ]
    return (sides[0][:, None] * sides[1]).flatten().float()


def _overlaps(masks: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """IoU `(N, N)` of flat boolean masks `(N, pixels)`; NaN, which compares as False, where both are empty."""
    counts = masks.float()
    weighted = counts * weights
    shared = weighted @ counts.T  # whole numbers below 2 ** 24: exact
    areas = weighted.sum(1)
    return shared / (areas[:, None] + areas[None, :] - shared)


def _distinct(found: _Found, mask_threshold: float, duplicate_iou: float) -> torch.Tensor:
    """Bool `(K,)`: False for a later triplet equal to an earlier kept one in names and places."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, names in enumerate(found.names()):
        groups.setdefault(names, []).append(index)
    keep = torch.ones(len(found.relation_labels), dtype=torch.bool, device=found.relation_labels.device)
    weights = _weigh(found.subject_masks, found.size_hw)
    for members in groups.values():
        if len(members) < 2:
            continue
        is_same = torch.ones(len(members), len(members), dtype=torch.bool, device=keep.device)
        for masks in (found.subject_masks[members], found.object_masks[members]):
            is_same &= _overlaps((masks.sigmoid() > mask_threshold).flatten(1), weights) > duplicate_iou
        for group in _greedy_groups(is_same.tolist()):
            for later in group[1:]:
                keep[members[later]] = False
    return keep


def _greedy_groups(is_same: list[list[bool]]) -> list[list[int]]:
    """Each first member gathers all later free ones that are the same as itself."""
    groups, free = [], list(range(len(is_same)))
    while free:
        first, *others = free
        groups.append([first, *(other for other in others if is_same[first][other])])
        free = [other for other in others if not is_same[first][other]]
    return groups


def _merge_objects(
    sure: _Found,
    triplets: Triplets,
    mask_threshold: float,
    duplicate_iou: float,
    num_thing_classes: int,
    compat: bool,
) -> SceneGraph:
    """Subjects and objects that are the same thing become one object; every pixel goes to the highest logit."""
    labels = sure.both("labels")  # (2K,) from 1
    logits = sure.both("masks")  # (2K, h, w)
    weights = _weigh(logits, sure.size_hw)
    binary = (logits.sigmoid() > mask_threshold).flatten(1)
    owner = torch.arange(len(labels), device=labels.device)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero()[:, 0].tolist()
        if label - 1 >= num_thing_classes:
            groups = [list(range(len(members)))]
        else:
            groups = _greedy_groups((_overlaps(binary[members], weights) > duplicate_iou).tolist())
        for group in groups:
            for member in group:
                owner[members[member]] = members[group[0]]

    # In bfloat16 the softmax makes ties of what is not: the release's.
    best = logits.flatten(1).T.softmax(-1).argmax(-1) if compat else logits.flatten(1).max(0).indices
    winner = owner[best]  # (h * w,)
    remaining = winner[weights > 0].unique()  # sorted; an object without a pixel is no object
    is_seen = torch.isin(owner, remaining).view(2, -1).all(0)
    pairs = torch.searchsorted(remaining, owner).view(2, -1).T[is_seen]
    relation_labels = sure.relation_labels[is_seen]
    indices = torch.searchsorted(remaining, winner).clamp(max=len(remaining) - 1).view(logits.shape[-2:])
    object_labels = labels[remaining]
    return SceneGraph(
        labels=object_labels,
        refine_bboxes=_with_area(sure.both("boxes")[remaining]),
        rel_pair_idxes=pairs,
        rel_dists=sure.relation_scores[is_seen],
        rels=torch.cat([pairs, relation_labels[:, None]], dim=1),
        object_map=indices,
        small_pan_results=indices * INSTANCE_OFFSET + (object_labels - 1)[indices],
        size_hw=sure.size_hw,
        triplets=triplets,
    )


def _with_area(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes `(N, 4)`; those that rounding has made lines or points become a pixel long where they have no length."""
    low, high = boxes[:, :2], boxes[:, 2:]
    is_flat = high <= low
    low = torch.where(is_flat, (low - 0.5).clamp(min=0), low)
    return torch.cat([low, torch.where(is_flat, low + 1, high)], dim=1)


def _empty_graph(found: _Found, triplets: Triplets, compat: bool) -> SceneGraph:
    num_objects = 1 if compat else 0
    integers = {"dtype": torch.long, "device": found.relation_labels.device}
    return SceneGraph(
        labels=torch.ones(num_objects, **integers),
        refine_bboxes=found.subject_boxes.new_tensor([[0, 0, found.size_hw[1], found.size_hw[0]]])[:num_objects],
        rel_pair_idxes=torch.zeros((0, 2), **integers),
        rel_dists=found.relation_scores[:0],
        rels=torch.zeros((num_objects, 3), **integers),
        object_map=torch.zeros((1, 1), **integers),
        small_pan_results=torch.full((1, 1), 1 if compat else found.num_classes, **integers),
        size_hw=found.size_hw,
        triplets=triplets,
    )
