"""The small OWLv2: every patch is classified by comparison with the names' text embeddings.

OWLv2's own training matches patches and objects one to one. Here every patch that shows an object learns its name
and its box, with the overlap it reaches as the wanted score (generalised focal loss, arXiv 2006.04388): far more signal
per image, and the detector's non-maximum suppression keeps the best patch of each object.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import StrictInt
from tokenizers import pre_tokenizers
from torch import nn
from transformers import (
    CLIPTokenizer,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessorPil,
    Owlv2Processor,
)
from transformers.image_transforms import center_to_corners_format

from moai.settings import Number, settings
from recipes.stages import StageSettings
from verbalizers.psgtr.loss_psgtr import generalized_box_iou

from .backbone import IMAGE_MEAN, IMAGE_STD
from .mask2former import pixels_of
from .scenes import NUM_OBJECT_NAMES, SCENE_NAMES, SceneBatches, SceneTask, TrainingScene

__all__ = [
    "Owlv2Settings",
    "Owlv2Task",
    "build_owlv2",
    "detector_processor",
    "fit_positions",
    "initialize_owlv2",
    "train_tokenizer",
]

_LONGEST_NAME = 16  # tokens, as in the published models
_POSITIONS = "owlv2.vision_model.embeddings.position_embedding.weight"


@settings(kw_only=True)
class Owlv2Settings(StageSettings):
    """The recipe.

    Attributes:
        vision: Fields of Owlv2VisionConfig; ``image_size`` is that of the shards.
        text: Fields of Owlv2TextConfig; its hidden size is the space in which patches and names meet.
        num_merges: Of the tokenizer, trained on the names.
        box_weight: Weight of the boxes' L1 distance.
        giou_weight: Weight of the boxes' generalised IoU.
        class_weight: Weight of the names' focal loss.
        first_shard: Where in the shards training starts.
    """

    vision: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    num_merges: StrictInt = 400
    box_weight: Number = 5.0
    giou_weight: Number = 2.0
    class_weight: Number = 2.0
    first_shard: StrictInt = 0


def train_tokenizer(names: Iterable[str], num_merges: int) -> CLIPTokenizer:
    """A byte-level BPE tokenizer of CLIP's form, small enough for a small model.

    Args:
        names: What its merges are learned from; any other text still becomes bytes.
        num_merges: How many pieces longer than a byte there are at most.
    """
    start, end, last = "<|startoftext|>", "<|endoftext|>", "</w>"
    trained = CLIPTokenizer().train_new_from_iterator(iter(names), 2 * 256 + num_merges)
    merges = [tuple(pair) for pair in json.loads(trained.backend_tokenizer.to_str())["model"]["merges"]][:num_merges]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(letter + last for letter in letters), *("".join(pair) for pair in merges)]
    # OWL reads a text at its highest id: the end token has to be the last one.
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys([*pieces, start, end]))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=_LONGEST_NAME)


def build_owlv2(settings: Owlv2Settings, image_size: int, tokenizer: CLIPTokenizer) -> Owlv2ForObjectDetection:
    """The model as it is saved, with transformers' fresh weights."""
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": _LONGEST_NAME,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **settings.text,
    }
    vision = {"image_size": image_size, **settings.vision}
    config = Owlv2Config(text_config=text, vision_config=vision, projection_dim=settings.text["hidden_size"])
    return Owlv2ForObjectDetection(config)


def detector_processor(image_size: int, tokenizer: CLIPTokenizer) -> Owlv2Processor:
    """Images padded to squares and resized, names tokenized."""
    images = Owlv2ImageProcessorPil(
        size={"height": image_size, "width": image_size}, image_mean=list(IMAGE_MEAN), image_std=list(IMAGE_STD)
    )
    return Owlv2Processor(image_processor=images, tokenizer=tokenizer)


def fit_positions(weights: Mapping[str, torch.Tensor], side: int) -> dict[str, torch.Tensor]:
    """A detector's weights for images of another size.

    Its position embeddings are stretched over the new patches, as transformers does for one look with
    ``interpolate_pos_encoding``. Weights of another kind of model stay as they are.

    Args:
        weights: By name; the position embeddings float (1 + patches, D), the class token's first.
        side: Wanted number of patches per row and column.
    """
    fitted = dict(weights)
    if (positions := fitted.get(_POSITIONS)) is not None and len(positions) != 1 + side**2:
        grid = positions[1:].T.float().unflatten(1, (math.isqrt(len(positions) - 1), -1))
        grid = F.interpolate(grid[None], size=(side, side), mode="bicubic", align_corners=False)[0]
        fitted[_POSITIONS] = torch.cat([positions[:1], grid.flatten(1).T.to(positions.dtype)])
    return fitted


@torch.no_grad()
def initialize_owlv2(model: Owlv2ForObjectDetection, images: torch.Tensor) -> None:
    """Weights from which a vision transformer learns without pretraining.

    Patch embeddings whiten the patches of real images; position embeddings are waves in x and y; attention starts
    near "look at what is like me and near me" (arXiv 2305.09828); scores start low.

    Args:
        model: Changed in place.
        images: float (B, 3, H, W), normalised.
    """
    embeddings, config = model.owlv2.vision_model.embeddings, model.config.vision_config
    size, width = config.patch_size, config.hidden_size
    patches = F.unfold(images, size, stride=size).transpose(1, 2).reshape(-1, 3 * size * size)
    second_moment = patches.T @ patches / len(patches)
    values, vectors = torch.linalg.eigh(second_moment)
    values, vectors = values.flip(0)[:width], vectors.flip(1)[:, :width]
    filters = (vectors / (values + 0.01).sqrt()).T.reshape(-1, 3, size, size)
    embeddings.patch_embedding.weight.zero_()
    embeddings.patch_embedding.weight[: len(filters)] = filters
    side = config.image_size // size
    embeddings.position_embedding.weight[1:] = 0.5 * _waves(side, width)
    for layer in model.owlv2.vision_model.encoder.layers:
        _imitate_trained_attention(layer.self_attn, config.num_attention_heads)
    for module in (model.class_head, model.box_head, model.objectness_head):
        for linear in module.modules():  # transformers draws the heads from N(0, 1): boxes would start saturated
            if isinstance(linear, nn.Linear):
                nn.init.xavier_uniform_(linear.weight)
    # sigmoid((similarity - 0.45) * 11): nothing at first, everything within reach.
    head = model.class_head
    head.logit_shift.weight.zero_()
    head.logit_shift.bias.fill_(-0.45)
    head.logit_scale.weight.zero_()
    head.logit_scale.bias.fill_(10.0)
    box = model.box_head.dense2
    box.weight.mul_(0.1)
    box.bias.copy_(torch.tensor([0.0, 0.0, 1.2, 1.2]))  # objects are larger than one patch


def _waves(side: int, width: int) -> torch.Tensor:
    """Float (side * side, width): sines and cosines of x and of y at growing wavelengths."""
    count = width // 4
    frequencies = math.pi / side * 2 ** torch.linspace(0, math.log2(side), count)
    angles = torch.arange(side)[:, None] * frequencies[None]  # (side, count)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    grid = torch.cat([waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)], dim=-1)
    return F.pad(grid.reshape(side * side, -1), (0, width - 4 * count))


def _imitate_trained_attention(attention: nn.Module, num_heads: int) -> None:
    width = attention.q_proj.weight.shape[0]
    per_head, identity = width // num_heads, torch.eye(width)
    for head in range(num_heads):
        rows = slice(head * per_head, (head + 1) * per_head)
        left, values, right = torch.linalg.svd(0.7 * torch.randn(width, width) / width**0.5 + 0.7 * identity)
        roots = values[:per_head].sqrt()[:, None]
        attention.q_proj.weight[rows] = roots * left[:, :per_head].T
        attention.k_proj.weight[rows] = roots * right[:per_head]
    left, values, right = torch.linalg.svd(0.4 * torch.randn(width, width) / width**0.5 - 0.4 * identity)
    attention.v_proj.weight.copy_(values.sqrt()[:, None] * right)
    attention.out_proj.weight.copy_(left * values.sqrt())


@dataclass(frozen=True)
class PatchTargets:
    """Targets of a batch's patches.

    Attributes:
        names: int64 (B, P), object name or -1.
        boxes: float (B, P, 4) centre x, y, width, height in [0, 1].
        weights: float (B, P): large objects have many patches, each counts less.
    """

    names: torch.Tensor
    boxes: torch.Tensor
    weights: torch.Tensor


def patch_targets(scenes: list[TrainingScene], side: int) -> PatchTargets:
    """Each patch belongs to the object at its centre; an object without a patch takes that of its box's centre.

    Args:
        scenes: A batch.
        side: Patches per row and column.
    """
    names = np.full((len(scenes), side * side), -1, dtype=np.int64)
    boxes = np.zeros((len(scenes), side * side, 4), dtype=np.float32)
    weights = np.zeros((len(scenes), side * side), dtype=np.float32)
    for index, scene in enumerate(scenes):
        size = scene.entity_map.shape[0]
        centres = ((np.arange(side) + 0.5) * size / side).astype(np.int64)
        owner = scene.entity_map[centres[:, None], centres].astype(np.int64).ravel() - 1
        corners = scene.boxes
        for entity in np.flatnonzero(scene.names < NUM_OBJECT_NAMES):
            middle = 0.5 * (corners[entity, :2] + corners[entity, 2:])
            if not (owner == entity).any():
                column, row = np.minimum((middle * side).astype(np.int64), side - 1)
                owner[row * side + column] = entity
            cells = owner == entity
            names[index, cells] = scene.names[entity]
            boxes[index, cells] = *middle, *(corners[entity, 2:] - corners[entity, :2])
            weights[index, cells] = cells.sum() ** -0.5
    return PatchTargets(torch.from_numpy(names), torch.from_numpy(boxes), torch.from_numpy(weights))


class Owlv2Task(SceneTask):
    """Training of the detector.

    Args:
        model: The trained model.
        settings: The recipe.
        tokenizer: Of the names.
        scenes: Scenes of a step.
    """

    count_names = [f"{word}_{name}" for name in ("name", "overlap", "score") for word in ("right", "asked")]

    def __init__(
        self, model: Owlv2ForObjectDetection, settings: Owlv2Settings, tokenizer: CLIPTokenizer, scenes: SceneBatches
    ) -> None:
        super().__init__(model, settings.optimization, scenes)
        self.settings = settings
        texts = tokenizer(list(SCENE_NAMES[:NUM_OBJECT_NAMES]), padding=True, return_tensors="pt")
        self.input_ids, self.attention_mask = texts.input_ids, texts.attention_mask

    def forward(self, inputs: list[TrainingScene]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss summed over scenes; shares of right names, overlaps and scores."""
        model = self.model
        feature_map, _ = model.image_embedder(pixels_of(inputs).contiguous())
        features = feature_map.flatten(1, 2)  # (B, P, D)
        objectness = model.objectness_predictor(features).float()
        boxes = model.box_head(features)
        with torch.autocast("cpu", enabled=False):  # names are compared in float32
            queries = model.owlv2.get_text_features(self.input_ids, self.attention_mask).pooler_output
            logits, _ = model.class_predictor(features.float(), queries.expand(len(inputs), -1, -1))  # (B, P, Q)
            boxes = (boxes.float() + model.box_bias).sigmoid()
            targets = patch_targets(inputs, feature_map.shape[1])
            loss, means = self._loss(logits, boxes, objectness, targets)
        return loss * len(inputs), self.means(means, len(inputs))

    def _loss(
        self,
        logits: torch.Tensor,
        boxes: torch.Tensor,
        objectness: torch.Tensor,
        targets: PatchTargets,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        is_object = targets.names >= 0
        weights = targets.weights[is_object]
        total = weights.sum().clamp(min=1.0)
        found, wanted = boxes[is_object], targets.boxes[is_object]
        overlap = generalized_box_iou(center_to_corners_format(found), center_to_corners_format(wanted))
        box_loss = self.settings.box_weight * ((found - wanted).abs().sum(-1) * weights).sum() / total
        box_loss = box_loss + self.settings.giou_weight * ((1 - overlap) * weights).sum() / total
        quality = 0.3 + 0.7 * overlap.detach().clamp(min=0)
        aims = torch.zeros_like(logits)
        aims[is_object] = F.one_hot(targets.names[is_object], logits.shape[-1]).float() * quality[:, None]
        entropy = F.binary_cross_entropy_with_logits(logits, aims, reduction="none")
        entropy = entropy * (logits.sigmoid() - aims).abs().square()
        cell_weights = torch.where(is_object, targets.weights, torch.ones(()))
        class_loss = (entropy.sum(-1) * cell_weights).sum() / total
        is_there = F.binary_cross_entropy_with_logits(objectness, is_object.float())
        loss = self.settings.class_weight * class_loss + box_loss + 0.2 * is_there
        with torch.no_grad():
            best = logits[is_object].max(-1)
            right = ((best.indices == targets.names[is_object]).float() * weights).sum() / total
            score = (best.values.sigmoid() * weights).sum() / total
            mean_overlap = (overlap * weights).sum() / total
        return loss, {"name": float(right), "overlap": float(mean_overlap), "score": float(score)}
