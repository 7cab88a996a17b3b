"""Vision encoder: an image's tokens and the resampled tokens of experts' maps through CLIP's layers with adaptors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from .adaptor import Adaptor
from .configuration_prismer import LABEL_EXPERTS, PrismerConfig
from .resampler import ExpertsResampler
from .stems import InstanceEmbedding, build_expert_stem

__all__ = ["PrismerVisionEncoder", "PrismerVisionLayer"]


class PrismerVisionLayer(CLIPEncoderLayer):
    """CLIP's layer with an adaptor between attention and MLP.

    Args:
        config: Of the vision tower.
    """

    def __init__(self, config: object) -> None:
        super().__init__(config)
        self.adaptor = Adaptor(self.embed_dim, is_normed_late=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """``(B, L, D) -> (B, L, D)``."""
        normed = self.layer_norm1(hidden_states)
        hidden_states = hidden_states + self.self_attn(hidden_states=normed, attention_mask=None)[0]
        hidden_states = self.adaptor(hidden_states)
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class PrismerVisionEncoder(nn.Module):
    """Image and experts' maps to tokens.

    Args:
        config: Of the whole model.
    """

    def __init__(self, config: PrismerConfig) -> None:
        super().__init__()
        vision, width = config.vision_config, config.vision_config.hidden_size
        patch, side = vision.patch_size, vision.image_size // vision.patch_size
        self.experts = list(config.experts)
        self.stems = nn.ModuleDict({"rgb": nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)})
        for expert in self.experts:
            is_label = expert in LABEL_EXPERTS
            self.stems[expert] = build_expert_stem(config.num_channels(expert), width, patch, is_label)
        self.positional_embedding = nn.Parameter(torch.randn(side**2, width) * width**-0.5)
        if "obj_detection" in self.experts:
            self.instance_embedding = InstanceEmbedding(config.num_instance_rows, width, config.draws_instance_rows)
        if self.experts:
            self.resampler = ExpertsResampler(
                width, config.resampler_layers, config.resampler_heads, config.num_latents
            )
        self.pre_layernorm = nn.LayerNorm(width, eps=vision.layer_norm_eps)
        self.layers = nn.ModuleList(PrismerVisionLayer(vision) for _ in range(vision.num_hidden_layers))
        self.post_layernorm = nn.LayerNorm(width, eps=vision.layer_norm_eps)

    def forward(
        self,
        pixel_values: torch.Tensor,
        expert_values: Mapping[str, torch.Tensor] | None = None,
        instance_map: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Encode images.

        Args:
            pixel_values: ``(B, 3, H, W)``.
            expert_values: Expert -> ``(B, C, h, w)``; every expert of the model.
            instance_map: ``(B, 1, h, w)`` instance numbers, 255 = background; with the expert ``obj_detection``.

        Returns:
            ``(B, patches + latents, D)``; patches alone without experts.

        Raises:
            ValueError: A map is missing, or one is given that the model does not read.
        """
        maps = {name: values for name, values in (expert_values or {}).items() if values is not None}
        wanted = set(self.experts) | ({"instance_map"} if "obj_detection" in self.experts else set())
        got = set(maps) | ({"instance_map"} if instance_map is not None else set())
        if wanted != got:
            raise ValueError(
                f"expected the maps {sorted(wanted)} beside `pixel_values`, got {sorted(got)}. PrismerProcessor makes "
                "them, also of what no expert has looked for."
            )
        tokens = self._embed("rgb", pixel_values)  # (B, patches, D)
        if self.experts:
            found = [self._embed(expert, maps[expert], instance_map) for expert in self.experts]
            tokens = torch.cat([tokens, self.resampler(torch.cat(found, dim=1))], dim=1)  # (B, patches + latents, D)
        tokens = self.pre_layernorm(tokens)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.post_layernorm(tokens)

    def _embed(self, name: str, values: torch.Tensor, instance_map: torch.Tensor | None = None) -> torch.Tensor:
        """``(B, C, H, W) -> (B, h * w, D)`` with positions."""
        features = self.stems[name](values.to(self.stems["rgb"].weight.dtype))
        if name == "obj_detection":
            features = self.instance_embedding(features, instance_map)
        return (features + self._positions(features.shape[-2:])).flatten(2).transpose(1, 2)

    def _positions(self, size_hw: tuple[int, int]) -> torch.Tensor:
        """The table of positions ``(1, D, h, w)``, the same for all modalities."""
        side = round(len(self.positional_embedding) ** 0.5)
        table = self.positional_embedding.T.reshape(1, -1, side, side)
        if tuple(size_hw) == (side, side):
            return table
        return nn.functional.interpolate(table, size=size_hw, mode="bicubic", align_corners=False)
