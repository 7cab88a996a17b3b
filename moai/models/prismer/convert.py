"""The original's state dict to ours: sizes read off shapes, every key consumed or named."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .configuration_prismer import EXPERTS, IMAGE_SIZES, LABEL_EXPERTS, PrismerConfig

__all__ = ["build_config", "convert_prismer_tensor", "looks_like_prismer"]

_VISION, _TEXT = "expert_encoder.", "text_decoder."
_MARK = "expert_encoder.positional_embedding"
#: Original -> ours, the first that matches the whole key; "" = holds nothing of its own.
_PATTERNS = tuple(
    (re.compile(pattern), target)
    for pattern, target in (
        (r"expert_encoder\.positional_embedding", r"model.vision_encoder.positional_embedding"),
        (r"expert_encoder\.instance_embedding", r"model.vision_encoder.instance_embedding.weight"),
        (r"expert_encoder\.conv1\.(.+)", r"model.vision_encoder.stems.\1"),
        (r"expert_encoder\.ln_(pre|post)\.(.+)", r"model.vision_encoder.\1_layernorm.\2"),
        (r"expert_encoder\.resampler\.latents", r"model.vision_encoder.resampler.latents"),
        (r"expert_encoder\.resampler\.perceiver_blocks\.(\d+)\.attn\.(.+)", r"RESAMPLER\1.attention.\2"),
        (r"expert_encoder\.resampler\.perceiver_blocks\.(\d+)\.mlp\.c_fc\.(.+)", r"RESAMPLER\1.fc1.\2"),
        (r"expert_encoder\.resampler\.perceiver_blocks\.(\d+)\.mlp\.c_proj\.(.+)", r"RESAMPLER\1.fc2.\2"),
        (r"expert_encoder\.resampler\.perceiver_blocks\.(\d+)\.ln_1\.(.+)", r"RESAMPLER\1.norm_latents.\2"),
        (r"expert_encoder\.resampler\.perceiver_blocks\.(\d+)\.ln_2\.(.+)", r"RESAMPLER\1.norm_tokens.\2"),
        (r"expert_encoder\.resampler\.perceiver_blocks\.(\d+)\.ln_ff\.(.+)", r"RESAMPLER\1.norm_feed_forward.\2"),
        (r"expert_encoder\.transformer\.resblocks\.(\d+)\.0\.attn\.in_proj_(.+)", r"VISION\1.self_attn.in_proj.\2"),
        (r"expert_encoder\.transformer\.resblocks\.(\d+)\.0\.attn\.out_proj\.(.+)", r"VISION\1.self_attn.out_proj.\2"),
        (r"expert_encoder\.transformer\.resblocks\.(\d+)\.0\.ln_([12])\.(.+)", r"VISION\1.layer_norm\2.\3"),
        (r"expert_encoder\.transformer\.resblocks\.(\d+)\.0\.mlp\.c_fc\.(.+)", r"VISION\1.mlp.fc1.\2"),
        (r"expert_encoder\.transformer\.resblocks\.(\d+)\.0\.mlp\.c_proj\.(.+)", r"VISION\1.mlp.fc2.\2"),
        (r"expert_encoder\.transformer\.resblocks\.(\d+)\.1\.adaptor_ln\.(.+)", r"VISION\1.adaptor.norm.\2"),
        (r"expert_encoder\.transformer\.resblocks\.(\d+)\.1\.adaptor\.(.+)", r"VISION\1.adaptor.\2"),
        (r"text_decoder\.roberta\.embeddings\.(position|token_type)_ids", ""),  # counted, not learned
        (r"text_decoder\.roberta\.embeddings\.(.+)", r"model.text_decoder.embeddings.\1"),
        (r"text_decoder\.roberta\.encoder\.layer\.(\d+)\.0\.(.+)", r"TEXT\1.\2"),
        (r"text_decoder\.roberta\.encoder\.layer\.(\d+)\.1\.(.+)", r"TEXT\1.crossattention.\2"),
        (r"text_decoder\.roberta\.encoder\.layer\.(\d+)\.2\.adaptor_ln\.(.+)", r"TEXT\1.adaptor.norm.\2"),
        (r"text_decoder\.roberta\.encoder\.layer\.(\d+)\.2\.adaptor\.(.+)", r"TEXT\1.adaptor.\2"),
        (r"text_decoder\.roberta\.encoder\.output_layer\.(.+)", r"model.text_decoder.output_layer.\1"),
        (r"text_decoder\.lm_head\.(.+)", r"lm_head.\1"),
    )
)
_PLACES = {
    "RESAMPLER": "model.vision_encoder.resampler.blocks.",
    "VISION": "model.vision_encoder.layers.",
    "TEXT": "model.text_decoder.layers.",
}
#: Written by nobody: they are the tied tensors named here, which they must equal.
TIED_KEYS = {
    "text_decoder.lm_head.decoder.weight": "text_decoder.roberta.embeddings.word_embeddings.weight",
    "text_decoder.lm_head.decoder.bias": "text_decoder.lm_head.bias",
}
#: Attention heads of the published widths; another width has heads of 64.
_HEADS = {768: 12, 1024: 16, 1280: 16}


def looks_like_prismer(names: Sequence[str] | Mapping[str, Any]) -> bool:
    """Whether these are the names of a Prismer's or PrismerZ's tensors."""
    return _MARK in names


def convert_prismer_tensor(key: str, tensor: torch.Tensor) -> dict[str, torch.Tensor] | None:
    """One tensor of the original under our names.

    Args:
        key: Its name.
        tensor: Its values; those on the meta device do.

    Returns:
        Name -> tensor: one, three for joined projections, none for what holds nothing of its own; None = unknown.
    """
    if key in TIED_KEYS:
        return {}
    for pattern, target in _PATTERNS:
        match = pattern.fullmatch(key)
        if match is None:
            continue
        if not target:
            return {}
        name = match.expand(target)
        for short, place in _PLACES.items():
            if name.startswith(short):
                name = place + name.removeprefix(short)
        if ".in_proj." in name:
            parts = tensor.chunk(3)
            return {name.replace("in_proj", f"{part}_proj"): p for part, p in zip("qkv", parts, strict=True)}
        return {name: tensor}
    return None


def build_config(
    shapes: Mapping[str, Sequence[int]], num_vision_heads: int | None = None, num_text_heads: int | None = None
) -> PrismerConfig:
    """The configuration of a state dict.

    Args:
        shapes: Of the original's tensors by name.
        num_vision_heads: Attention heads of the vision encoder, which no shape tells; None = those of the published
            model of this width, else of 64 channels each.
        num_text_heads: Likewise of the text decoder.

    Raises:
        ValueError: A tensor that tells a size is missing, or the heads do not divide a width.
    """

    def shape(key: str) -> Sequence[int]:
        if key not in shapes:
            raise ValueError(f"expected the weights of a Prismer, got none for {key}. Fetch the file again.")
        return shapes[key]

    def count(pattern: str) -> int:
        return 1 + max((int(m[1]) for key in shapes if (m := re.match(pattern, key))), default=-1)

    width, _, patch, _ = shape(_VISION + "conv1.rgb.weight")
    vocabulary, hidden = shape(_TEXT + "roberta.embeddings.word_embeddings.weight")
    side = round(shape(_MARK)[0] ** 0.5)
    experts = [expert for expert in EXPERTS if any(key.startswith(f"{_VISION}conv1.{expert}.") for key in shapes)]
    labels = [shape(f"{_VISION}conv1.{expert}.1.weight")[1] for expert in experts if expert in LABEL_EXPERTS]
    fields: dict[str, Any] = {}
    if labels:
        fields["label_size"] = labels[0]
    if experts:
        fields["num_latents"] = shape(_VISION + "resampler.latents")[0]
        fields["resampler_layers"] = count(r"expert_encoder\.resampler\.perceiver_blocks\.(\d+)\.")
    if "obj_detection" in experts:
        fields["num_instance_rows"] = shape(_VISION + "instance_embedding")[0]
    # 480 pixels are 34 patches of 14 and a rest
    image_size = next((size for size in IMAGE_SIZES if size // patch == side), side * patch)
    first_layer = _TEXT + "roberta.encoder.output_layer."
    return PrismerConfig(
        vision_config={
            "hidden_size": width,
            "intermediate_size": shape(_VISION + "transformer.resblocks.0.0.mlp.c_fc.weight")[0],
            "num_hidden_layers": count(r"expert_encoder\.transformer\.resblocks\.(\d+)\."),
            "num_attention_heads": num_vision_heads or _count_heads(width, "vision"),
            "patch_size": patch,
            "image_size": image_size,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "intermediate_size": shape(first_layer + "intermediate.dense.weight")[0],
            "num_hidden_layers": count(r"text_decoder\.roberta\.encoder\.layer\.(\d+)\."),
            "num_attention_heads": num_text_heads or _count_heads(hidden, "text"),
            "max_position_embeddings": shape(_TEXT + "roberta.embeddings.position_embeddings.weight")[0],
            "type_vocab_size": shape(_TEXT + "roberta.embeddings.token_type_embeddings.weight")[0],
            "layer_norm_eps": 1e-5,
        },
        experts=experts,
        **fields,
    )


def _count_heads(width: int, part: str) -> int:
    if width not in _HEADS and width % 64:
        raise ValueError(
            f"expected the number of attention heads for a {part} width of {width}, which no published Prismer has. "
            f"Give `num_{part}_heads`."
        )
    return _HEADS.get(width, width // 64)
