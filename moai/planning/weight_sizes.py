"""Weights counted on architectures, without their numbers: by part, and in 16, 8 and 4 bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import AutoModel, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

__all__ = ["NF4_BYTES", "ModelSize", "build_empty", "count_model", "count_published_verbalizers"]

#: Bytes of a parameter in nf4 with double quantization: 4 bits and 0.127 of constants (QLoRA, arXiv 2305.14314, 3).
NF4_BYTES = 4.127 / 8


@dataclass(frozen=True)
class ModelSize:
    """Parameters of a model.

    Attributes:
        num_parameters: All.
        num_quantized: Of them, those of linears that ``load_in_4bit`` and ``load_in_8bit`` shrink.
        parts: Parameters by the names of the model's parts.
        num_rows: Rows of the linears that are shrunk: in 8 bits each has a scale of 4 bytes.
        largest_linear: Parameters of the largest of them that works on many tokens: it is made whole again meanwhile.
    """

    num_parameters: int
    num_quantized: int
    parts: Mapping[str, int] = field(default_factory=dict)
    num_rows: int = 0
    largest_linear: int = 0

    def to_bytes(self, bits: int, other_bytes: float = 2.0) -> float:
        """Bytes of the weights.

        Args:
            bits: 4 or 8; 16 = nothing is shrunk.
            other_bytes: Of a parameter that is not shrunk.
        """
        quantized = {16: self.num_quantized * other_bytes, 4: self.num_quantized * NF4_BYTES}
        quantized[8] = self.num_quantized + 4 * self.num_rows
        return quantized[bits] + (self.num_parameters - self.num_quantized) * other_bytes


def build_empty(config: PreTrainedConfig) -> PreTrainedModel:
    """A model without numbers, on torch's meta device.

    Args:
        config: Of a model that answers, or of another one that ``AutoModel`` knows.
    """
    answers = type(config) in AutoModelForImageTextToText._model_mapping
    with torch.device("meta"):
        return (AutoModelForImageTextToText if answers else AutoModel).from_config(config)


def count_model(model: nn.Module, skipped: Sequence[str] = ()) -> ModelSize:
    """Count a model, which may stand on torch's meta device.

    Args:
        model: The model.
        skipped: Names, or beginnings of names, of modules whose linears are not shrunk.
    """
    parts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = name.removeprefix("model.").split(".")[0]
        parts[part] = parts.get(part, 0) + parameter.numel()
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(tuple(skipped))
    }
    return ModelSize(
        sum(parts.values()),
        sum(module.weight.numel() for module in linears.values()),
        parts,
        sum(module.out_features for module in linears.values()),
        max((module.weight.numel() for name, module in linears.items() if name != "lm_head"), default=0),
    )


def count_published_verbalizers() -> dict[str, int]:
    """Bytes of the release's verbalizer models in 32 bits, by name: Mask2Former's Swin-B for COCO, OWLv2's ViT-B/16."""
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Owlv2Config,
        Owlv2ForObjectDetection,
        SwinConfig,
    )

    backbone = SwinConfig(
        image_size=384,
        embed_dim=128,
        depths=[2, 2, 18, 2],
        num_heads=[4, 8, 16, 32],
        window_size=12,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    with torch.device("meta"):
        models = {
            "Mask2Former, Swin-B": Mask2FormerForUniversalSegmentation(
                Mask2FormerConfig(backbone_config=backbone, num_labels=133)
            ),
            "OWLv2, ViT-B/16": Owlv2ForObjectDetection(
                Owlv2Config(vision_config={"image_size": 960, "patch_size": 16}, text_config={})
            ),
        }
    return {name: 4 * sum(parameter.numel() for parameter in model.parameters()) for name, model in models.items()}
