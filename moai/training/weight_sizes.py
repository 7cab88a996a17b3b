"""Sizes of the published models: parameters counted on their architectures, without their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from moai.models.moai.configuration_moai import MoAIConfig
from moai.models.moai.modeling_moai import MoAIForConditionalGeneration
from moai.models.moai.quantization import COMPUTE_DTYPE_MODULES

__all__ = ["ModelSize", "count_moai", "count_published_verbalizers", "format_sizes"]


@dataclass(frozen=True)
class ModelSize:
    """Parameters of a model.

    Attributes:
        num_parameters: All.
        num_quantized: Of them, those of linears that ``load_in_4bit`` and ``load_in_8bit`` shrink.
        stored_bytes: Of a parameter in the published file.
    """

    num_parameters: int
    num_quantized: int
    stored_bytes: int

    def to_bytes(self, quantized_bytes: float, other_bytes: float = 2.0) -> float:
        """Bytes of the weights, given those of a parameter of either sort."""
        return self.num_quantized * quantized_bytes + (self.num_parameters - self.num_quantized) * other_bytes


def count_moai(config: MoAIConfig) -> ModelSize:
    """Count a MoAI whose weights are stored in 16 bits.

    Args:
        config: Its configuration.
    """
    with torch.device("meta"):
        model = MoAIForConditionalGeneration(config)
    quantized = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(COMPUTE_DTYPE_MODULES)
    )
    return ModelSize(sum(parameter.numel() for parameter in model.parameters()), quantized, 2)


def count_published_verbalizers() -> dict[str, ModelSize]:
    """Count the release's verbalizer models, by name: Mask2Former's Swin-B for COCO, OWLv2's ViT-B/16."""
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
    return {
        name: ModelSize(sum(parameter.numel() for parameter in model.parameters()), 0, 4)
        for name, model in models.items()
    }


def format_sizes(sizes: Mapping[str, ModelSize], nf4_bytes: float) -> str:
    """A Markdown table: download, and memory of the weights in 16, 8 and 4 bits.

    Args:
        sizes: By name.
        nf4_bytes: Bytes of a parameter in nf4, its share of constants included.
    """
    lines = ["| Model | Parameters | Download | in 16 bits | in 8 bits | in 4 bits |", "| --- " + "| ---: " * 5 + "|"]
    for name, size in sizes.items():
        download = size.num_parameters * size.stored_bytes
        cells = [download, size.to_bytes(2), size.to_bytes(1), size.to_bytes(nf4_bytes)]
        lines.append(
            f"| {name} | {size.num_parameters / 1e6:,.0f} M | " + " | ".join(f"{c / 1e9:.2f} GB" for c in cells) + " |"
        )
    return "\n".join(lines)
