"""PSGTR's training loss: Hungarian matching of triplets, then classes, boxes and masks of the matched ones.

Weights and normalisation are those of OpenPSG (https://github.com/Jingkang50/OpenPSG), on which the released
MoAI's scene-graph
model was trained: subject and object classes are learned from matched queries only, "no relation" from all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from transformers.image_transforms import center_to_corners_format as to_corners
from transformers.loss.loss_for_object_detection import dice_loss, sigmoid_focal_loss

__all__ = ["generalized_box_iou", "mask_loss", "match_triplets", "triplet_loss"]

ROLES = ("subject", "object")
# OpenPSG's matcher weighs the mean class cost against half the box cost by 1.2 to 1.
CLASS_COST_SHARE = 1.2


def generalized_box_iou(first_xyxy: torch.Tensor, second_xyxy: torch.Tensor) -> torch.Tensor:
    """GIoU (arXiv 1902.09630) of broadcast pairs: `(..., 4)` and `(..., 4)` give `(...)`."""
    area_first = (first_xyxy[..., 2:] - first_xyxy[..., :2]).clamp(min=0).prod(-1)
    area_second = (second_xyxy[..., 2:] - second_xyxy[..., :2]).clamp(min=0).prod(-1)
    overlap = torch.min(first_xyxy[..., 2:], second_xyxy[..., 2:]) - torch.max(
        first_xyxy[..., :2], second_xyxy[..., :2]
    )
    intersection = overlap.clamp(min=0).prod(-1)
    union = area_first + area_second - intersection
    hull = torch.max(first_xyxy[..., 2:], second_xyxy[..., 2:]) - torch.min(first_xyxy[..., :2], second_xyxy[..., :2])
    hull_area = hull.clamp(min=0).prod(-1)
    tiny = torch.finfo(union.dtype).eps
    return intersection / union.clamp(min=tiny) - (hull_area - union) / hull_area.clamp(min=tiny)


def _targets_of_roles(label: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Per triplet what its subject and object are: index into the image's objects, class `(T,)`, box `(T, 4)`."""
    relations = label["relations"].reshape(-1, 3)
    targets: dict[str, Any] = {"relation": relations[:, 2]}
    for column, role in enumerate(ROLES):
        indices = relations[:, column]
        targets[role] = (indices, label["class_labels"][indices], label["boxes"][indices])
    return targets


@torch.no_grad()
def match_triplets(
    outputs: Mapping[str, torch.Tensor], label: Mapping[str, torch.Tensor], index: int, config: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and triplets that belong together in one image.

    Args:
        outputs: classes and boxes of one decoder layer, batched.
        label: the image's truth (see `PSGTRForSceneGraph.forward`).
        index: which image of the batch.
        config: its cost weights.

    Returns:
        Query indices and triplet indices, both int64 `(min(Q, T),)`.
    """
    from scipy.optimize import linear_sum_assignment

    targets = _targets_of_roles(label)
    class_cost = _class_cost(outputs["relation_logits"][index], targets["relation"]) * config.relation_loss_coefficient
    box_cost = torch.zeros_like(class_cost)
    for role in ROLES:
        _, classes, boxes = targets[role]
        predicted = outputs[f"{role}_boxes"][index].float()  # (Q, 4)
        class_cost += _class_cost(outputs[f"{role}_logits"][index], classes) * config.class_loss_coefficient
        box_cost += config.bbox_loss_coefficient * torch.cdist(predicted, boxes.to(predicted), p=1)
        giou = generalized_box_iou(to_corners(predicted)[:, None], to_corners(boxes.to(predicted))[None])
        box_cost -= config.giou_loss_coefficient * giou
    cost = CLASS_COST_SHARE * class_cost / 3 + box_cost / 2  # (Q, T)
    queries, triplets = linear_sum_assignment(torch.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6).cpu())
    device = class_cost.device
    return torch.as_tensor(queries, device=device), torch.as_tensor(triplets, device=device)


def _class_cost(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """`(Q, K)` logits and `(T,)` classes give `(Q, T)`: minus the probability of the right class."""
    return -logits.float().softmax(-1)[:, classes]


def triplet_loss(outputs: Any, labels: list[dict[str, torch.Tensor]], config: Any) -> dict[str, torch.Tensor]:
    """The weighted loss terms; their sum is the loss.

    Args:
        outputs: a PSGTROutput, batched; without masks there is no mask loss.
        labels: one dict per image.
        config: weights.

    Raises:
        ValueError: labels and images differ in number, or an index is out of range.
    """
    _check_labels(labels, len(outputs.subject_logits), config)
    device = outputs.subject_logits.device
    labels = [{name: value.to(device) for name, value in label.items()} for label in labels]
    matches = [match_triplets(outputs, label, i, config) for i, label in enumerate(labels)]
    losses = _layer_loss(outputs, labels, matches, config)
    if outputs.subject_masks is not None:
        losses.update(mask_loss(outputs, labels, matches, config))
    for layer, auxiliary in enumerate(outputs.auxiliary_outputs or ()):
        matches = [match_triplets(auxiliary, label, i, config) for i, label in enumerate(labels)]
        losses.update({f"{name}_{layer}": v for name, v in _layer_loss(auxiliary, labels, matches, config).items()})
    return losses


def _check_labels(labels: list[dict[str, torch.Tensor]], num_images: int, config: Any) -> None:
    if len(labels) != num_images:
        raise ValueError(f"expected one label dict per image ({num_images}), got {len(labels)}.")
    for label in labels:
        num_objects, relations = len(label["class_labels"]), label["relations"].reshape(-1, 3)
        if len(relations) and (
            relations.min() < 0
            or relations[:, :2].max() >= num_objects
            or relations[:, 2].min() < 1
            or relations[:, 2].max() > config.num_relations
        ):
            raise ValueError(
                f"`relations` must hold object indices below {num_objects} and predicates from 1 to "
                f"{config.num_relations}, got {relations.tolist()}. Predicates count from 1; 0 means none."
            )


def _average_over_processes(count: float, device: torch.device) -> float:
    """Mean of a count over all data-parallel processes, at least 1."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        total = torch.tensor([count], device=device, dtype=torch.float32)
        distributed.all_reduce(total)
        count = total.item() / distributed.get_world_size()
    return max(count, 1.0)


def _layer_loss(
    outputs: Mapping[str, torch.Tensor], labels: list[dict], matches: list[tuple], config: Any
) -> dict[str, torch.Tensor]:
    relation_logits = outputs["relation_logits"].float()  # (B, Q, P + 1)
    batch, queries = _flat_matches(matches)
    num_matched = float(len(queries))
    num_positive = _average_over_processes(num_matched, relation_logits.device)
    targets = [_targets_of_roles(label) for label in labels]

    wanted = torch.zeros(relation_logits.shape[:2], dtype=torch.long, device=relation_logits.device)
    relations = [t["relation"][triplets] for t, (_, triplets) in zip(targets, matches, strict=True)]
    wanted[batch, queries] = torch.cat(relations)
    weight = torch.ones(relation_logits.shape[-1], device=relation_logits.device)
    weight[0] = config.eos_coefficient
    summed = F.cross_entropy(relation_logits.flatten(0, 1), wanted.flatten(), weight, reduction="sum")
    num_negative = wanted.numel() - num_matched
    normaliser = _average_over_processes(num_matched + num_negative * config.eos_coefficient, summed.device)
    losses = {"relation_class": config.relation_loss_coefficient * summed / normaliser}

    for role in ROLES:
        pairs = list(zip(targets, matches, strict=True))
        classes = torch.cat([t[role][1][triplets] for t, (_, triplets) in pairs])
        boxes = torch.cat([t[role][2][triplets] for t, (_, triplets) in pairs])
        logits = outputs[f"{role}_logits"].float()[batch, queries]  # (matched, C + 1)
        predicted = outputs[f"{role}_boxes"].float()[batch, queries]
        class_loss = F.cross_entropy(logits, classes, reduction="sum") / num_positive
        l1_loss = (predicted - boxes).abs().sum() / num_positive
        giou_loss = (1 - generalized_box_iou(to_corners(predicted), to_corners(boxes))).sum() / num_positive
        losses[f"{role}_class"] = config.class_loss_coefficient * class_loss
        losses[f"{role}_box"] = config.bbox_loss_coefficient * l1_loss
        losses[f"{role}_giou"] = config.giou_loss_coefficient * giou_loss
    return losses


def _flat_matches(matches: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    batch = torch.cat([torch.full_like(queries, i) for i, (queries, _) in enumerate(matches)])
    return batch, torch.cat([queries for queries, _ in matches])


def mask_loss(outputs: Any, labels: list[dict], matches: list[tuple], config: Any) -> dict[str, torch.Tensor]:
    """Dice and focal loss of the matched masks, each image at its truth's resolution.

    Args:
        outputs: `subject_masks` and `object_masks`, logits `(B, Q, h, w)`.
        labels: one dict per image.
        matches: per image the query indices and the triplet indices that belong together.
        config: weights.
    """
    losses = {}
    num_matched = _average_over_processes(float(sum(len(q) for q, _ in matches)), outputs.subject_masks.device)
    for column, role in enumerate(ROLES):
        logits_of_role = outputs[f"{role}_masks"]
        dice = focal = logits_of_role.sum() * 0.0
        for index, (label, (queries, triplets)) in enumerate(zip(labels, matches, strict=True)):
            if len(queries) == 0:
                continue
            truth = label["masks"][label["relations"].reshape(-1, 3)[triplets, column]].float()
            logits = logits_of_role[index, queries].float()[:, None]
            logits = F.interpolate(logits, size=truth.shape[-2:], mode="bilinear", align_corners=False)
            logits, truth = logits.flatten(1), truth.flatten(1)  # (matched, h * w)
            dice = dice + dice_loss(logits, truth, num_boxes=1)
            focal = focal + sigmoid_focal_loss(logits, truth, num_boxes=1)
        losses[f"{role}_dice"] = config.dice_loss_coefficient * dice / num_matched
        if config.mask_loss_coefficient:
            losses[f"{role}_focal"] = config.mask_loss_coefficient * focal / num_matched
    return losses
