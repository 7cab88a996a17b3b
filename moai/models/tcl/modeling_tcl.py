"""TCL: image encoder and text encoder side by side, fusion layers on top, two heads for learning."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from ..image_tokens import encode_image_tokens
from .configuration_tcl import TCLConfig

__all__ = ["TCLModel", "TCLOutput", "patch_pooling"]


@dataclass
class TCLOutput(ModelOutput):
    """Output of :class:`TCLModel`.

    Attributes:
        image_embeds: ``(I, E)``, of length 1; None without images.
        text_embeds: ``(T, E)``, likewise.
        logits_per_image: ``(I, T)`` similarities divided by the temperature; None unless both were given.
        logits_per_text: ``(T, I)``.
    """

    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None


class TCLModel(PreTrainedModel):
    """The whole model: compares images and texts, and tells whether two belong together.

    Args:
        config: Its sizes.

    Attributes:
        vision_model: Image encoder, a tower of transformers.
        text_model: Text encoder with fusion layers.
        visual_projection: Class token of an image to the common space.
        text_projection: Class token of a text to it.
        matching_head: Fused class token to two logits: no match, match.
        temperature: Scalar parameter.
    """

    config_class = TCLConfig
    config: TCLConfig
    base_model_prefix = "tcl"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["BertLayer", "BertEmbeddings", "ViTLayer", "CLIPEncoderLayer"]
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: TCLConfig) -> None:
        from .text_encoder import TCLTextEncoder  # late: its BERT may be half imported when this module registers

        super().__init__(config)
        vision, text = config.vision_config, config.text_config
        text._attn_implementation = config._attn_implementation
        self.vision_model = AutoModel.from_config(vision)
        if getattr(self.vision_model, "pooler", None) is not None:
            self.vision_model.pooler = None  # the class token is read as it is
        self.text_model = TCLTextEncoder(text, config.num_text_layers, vision.hidden_size)
        self.visual_projection = nn.Linear(vision.hidden_size, config.projection_dim)
        self.text_projection = nn.Linear(text.hidden_size, config.projection_dim)
        self.matching_head = nn.Linear(text.hidden_size, 2)
        self.temperature = nn.Parameter(torch.tensor(float(config.initial_temperature)))
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None = None, *args: Any, **kwargs: Any
    ) -> TCLModel:
        """Load as every Hugging Face model; see :meth:`transformers.PreTrainedModel.from_pretrained`.

        Args:
            pretrained_model_name_or_path: Folder or hub name.
            *args: As in transformers.
            **kwargs: Likewise.
        """
        kwargs.setdefault("use_safetensors", True)  # never unpickle
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        from transformers.models.bert.modeling_bert import BertEmbeddings

        from .text_encoder import MaskedWordHead

        std = self.config.text_config.initializer_range
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=std)
            if module.padding_idx is not None:
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, MaskedWordHead):
            init.zeros_(module.bias)
        elif isinstance(module, BertEmbeddings):
            init.copy_(module.position_ids, torch.arange(module.position_ids.shape[-1]).expand((1, -1)))
            init.zeros_(module.token_type_ids)
        elif module is self:
            init.constant_(self.temperature, self.config.initial_temperature)

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Image tokens.

        Args:
            pixel_values: ``(B, 3, H, W)``.

        Returns:
            ``(B, 1 + V, vision width)``, class token first, after the tower's last norm.
        """
        return encode_image_tokens(self.vision_model, pixel_values)

    def project_images(self, image_states: torch.Tensor) -> torch.Tensor:
        """Image tokens ``(..., vision width)`` to vectors of length 1 in the common space, ``(..., E)``."""
        return F.normalize(self.visual_projection(image_states), dim=-1)

    def project_texts(self, text_states: torch.Tensor) -> torch.Tensor:
        """Text tokens ``(..., D)`` to vectors of length 1 in the common space, ``(..., E)``."""
        return F.normalize(self.text_projection(text_states), dim=-1)

    def match(
        self, text_states: torch.Tensor, attention_mask: torch.Tensor, image_states: torch.Tensor
    ) -> torch.Tensor:
        """Whether texts and images belong together, pair by pair.

        Args:
            text_states: ``(B, L, D)`` of ``text_model.encode``.
            attention_mask: ``(B, L)``.
            image_states: ``(B, 1 + V, vision width)`` of :meth:`encode_images`.

        Returns:
            ``(B, 2)`` logits: no match, match.
        """
        return self.matching_head(self.text_model.fuse(text_states, attention_mask, image_states)[:, 0])

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> TCLOutput:
        """Compare images and texts.

        Args:
            pixel_values: ``(I, 3, H, W)``; None = texts alone.
            input_ids: ``(T, L)``; None = images alone.
            attention_mask: ``(T, L)``; None = no padding.
            **kwargs: Nothing; transformers passes ``return_dict``.
        """
        image_embeds = text_embeds = logits = None
        if pixel_values is not None:
            image_embeds = self.project_images(self.encode_images(pixel_values)[:, 0])
        if input_ids is not None:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            text_embeds = self.project_texts(self.text_model.encode(input_ids, mask)[:, 0])
        if image_embeds is not None and text_embeds is not None:
            logits = image_embeds @ text_embeds.T / self.temperature
        return TCLOutput(image_embeds, text_embeds, logits, None if logits is None else logits.T)


def patch_pooling(patches: torch.Tensor) -> torch.Tensor:
    """Average patches over squares: a grid of 16 x 16 becomes 4 x 4, one of 9 x 9 becomes 3 x 3.

    The original reshapes so that only grids with ``floor(G / c) == c`` for ``c = floor(sqrt(G))`` work, and raises for
    others (6 x 6, ...); here any grid does, a rest of rows and columns dropped as there.

    Args:
        patches: ``(B, G * G, E)``, row by row.

    Returns:
        ``(B, floor(G / c) ** 2, E)``; not normalised again.
    """
    batch, count, width = patches.shape
    side = round(count**0.5)
    if side * side != count:
        raise ValueError(f"expected patches of a square image, got {count}.")
    size = int(side**0.5)
    grid = patches.transpose(1, 2).reshape(batch, width, side, side)
    return F.avg_pool2d(grid, size, size).flatten(2).transpose(1, 2)


AutoModel.register(TCLConfig, TCLModel, exist_ok=True)
