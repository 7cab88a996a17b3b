"""The original's state dict to ours: sizes read off shapes, every key consumed or named."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .configuration_tcl import TCLConfig

__all__ = ["build_config", "convert_tcl_tensor", "is_training_state", "looks_like_tcl"]

_MARKS = ("visual_encoder.pos_embed", "text_encoder.bert.embeddings.word_embeddings.weight", "itm_head.weight")
#: Original -> ours, the first that matches the whole key; "" = holds nothing of its own.
_PATTERNS = tuple(
    (re.compile(pattern), target)
    for pattern, target in (
        (r"visual_encoder\.cls_token", r"vision_model.embeddings.cls_token"),
        (r"visual_encoder\.pos_embed", r"vision_model.embeddings.position_embeddings"),
        (r"visual_encoder\.patch_embed\.proj\.(.+)", r"vision_model.embeddings.patch_embeddings.projection.\1"),
        (r"visual_encoder\.blocks\.(\d+)\.norm1\.(.+)", r"vision_model.layers.\1.layernorm_before.\2"),
        (r"visual_encoder\.blocks\.(\d+)\.norm2\.(.+)", r"vision_model.layers.\1.layernorm_after.\2"),
        (r"visual_encoder\.blocks\.(\d+)\.attn\.qkv\.(.+)", r"vision_model.layers.\1.attention.qkv_proj.\2"),
        (r"visual_encoder\.blocks\.(\d+)\.attn\.proj\.(.+)", r"vision_model.layers.\1.attention.o_proj.\2"),
        (r"visual_encoder\.blocks\.(\d+)\.mlp\.(fc[12])\.(.+)", r"vision_model.layers.\1.mlp.\2.\3"),
        (r"visual_encoder\.norm\.(.+)", r"vision_model.layernorm.\1"),
        (r"text_encoder\.bert\.embeddings\.position_ids", ""),  # counted, not learned
        (r"text_encoder\.bert\.embeddings\.(.+)", r"text_model.embeddings.\1"),
        (r"text_encoder\.bert\.encoder\.layer\.(.+)", r"text_model.layers.\1"),
        (r"text_encoder\.cls\.predictions\.transform\.(.+)", r"text_model.lm_head.transform.\1"),
        (r"text_encoder\.cls\.predictions\.bias", r"text_model.lm_head.bias"),
        (r"text_encoder\.cls\.predictions\.decoder\.(weight|bias)", ""),  # tied: embedding, and the bias above
        (r"vision_proj\.(.+)", r"visual_projection.\1"),
        (r"text_proj\.(.+)", r"text_projection.\1"),
        (r"itm_head\.(.+)", r"matching_head.\1"),
        (r"temp", r"temperature"),
    )
)
_MOMENTUM = re.compile(r"(visual_encoder|text_encoder|vision_proj|text_proj)_m\.(.+)")
_QUEUES = ("image_queue", "text_queue", "queue_ptr", "idx_queue")


def looks_like_tcl(names: Sequence[str] | Mapping[str, Any]) -> bool:
    """Whether these are the names of a TCL's tensors."""
    return all(mark in names for mark in _MARKS)


def is_training_state(key: str) -> bool:
    """Whether a tensor of the original only serves to go on with its training: a momentum copy, a queue."""
    return key in _QUEUES or _MOMENTUM.fullmatch(key) is not None


def convert_tcl_tensor(key: str, tensor: torch.Tensor) -> dict[str, torch.Tensor] | None:
    """One tensor of the original under our names.

    Args:
        key: Its name; a momentum copy's gets the name of what it copies.
        tensor: Its values; those on the meta device do.

    Returns:
        Name -> tensor: one, three for joined projections, none for queues and what is tied; None = unknown.
    """
    if key in _QUEUES:
        return {}
    if match := _MOMENTUM.fullmatch(key):
        key = f"{match[1]}.{match[2]}"
    for pattern, target in _PATTERNS:
        match = pattern.fullmatch(key)
        if match is None:
            continue
        name = match.expand(target)
        if ".qkv_proj." in name:
            parts = zip("qkv", tensor.chunk(3), strict=True)
            return {name.replace("qkv_proj", f"{part}_proj"): values for part, values in parts}
        return {name: tensor} if name else {}
    return None


def build_config(
    shapes: Mapping[str, Sequence[int]], num_vision_heads: int | None = None, num_text_heads: int | None = None
) -> TCLConfig:
    """The configuration of a state dict.

    Args:
        shapes: Of the original's tensors by name.
        num_vision_heads: Attention heads of the image encoder, which no shape tells; None = of 64 channels each.
        num_text_heads: Likewise of the text encoder.

    Raises:
        ValueError: A tensor that tells a size is missing, or the heads do not divide a width.
    """

    def shape(key: str) -> Sequence[int]:
        if key not in shapes:
            raise ValueError(f"expected the weights of a TCL, got none for {key}. Fetch the file again.")
        return shapes[key]

    def numbers(pattern: str) -> set[int]:
        return {int(match[1]) for key in shapes if (match := re.match(pattern, key))}

    width, _, patch, _ = shape("visual_encoder.patch_embed.proj.weight")
    vocabulary, hidden = shape("text_encoder.bert.embeddings.word_embeddings.weight")
    side = round((shape("visual_encoder.pos_embed")[1] - 1) ** 0.5)
    fusing = numbers(r"text_encoder\.bert\.encoder\.layer\.(\d+)\.crossattention\.")
    if not fusing:
        raise ValueError("expected fusion layers (text_encoder...crossattention), got none. Fetch the file again.")
    return TCLConfig(
        vision_config={
            "hidden_size": width,
            "intermediate_size": shape("visual_encoder.blocks.0.mlp.fc1.weight")[0],
            "num_hidden_layers": 1 + max(numbers(r"visual_encoder\.blocks\.(\d+)\.")),
            "num_attention_heads": num_vision_heads or _count_heads(width, "vision"),
            "patch_size": patch,
            "image_size": side * patch,
            "layer_norm_eps": 1e-6,
        },
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "intermediate_size": shape("text_encoder.bert.encoder.layer.0.intermediate.dense.weight")[0],
            "num_hidden_layers": 1 + max(numbers(r"text_encoder\.bert\.encoder\.layer\.(\d+)\.")),
            "num_attention_heads": num_text_heads or _count_heads(hidden, "text"),
            "max_position_embeddings": shape("text_encoder.bert.embeddings.position_embeddings.weight")[0],
            "type_vocab_size": shape("text_encoder.bert.embeddings.token_type_embeddings.weight")[0],
        },
        num_text_layers=min(fusing),
        projection_dim=shape("vision_proj.weight")[0],
    )


def _count_heads(width: int, part: str) -> int:
    if width % 64:
        raise ValueError(
            f"expected the number of attention heads for a {part} width of {width}, which the published TCL has not. "
            f"Give `num_{part}_heads`."
        )
    return width // 64
