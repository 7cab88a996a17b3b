"""Mapping of an official-format checkpoint's tensors to this project's names."""

from __future__ import annotations

import re

import torch

from ...models.moai.internlm2 import convert_decoder_tensor
from .official_config import COMPRESSOR_PREFIX, VISION_PREFIX, OfficialSizes
from .position_table import resize_position_table

#: expert in the release -> (our stream, place: 0 auxiliary, 1 other modality, 2 self)
EXPERTS = {
    "moai_CA_img_aux": ("image_experts", 0),
    "moai_CA_img_lang": ("image_experts", 1),
    "moai_SA_img": ("image_experts", 2),
    "moai_CA_lang_aux": ("language_experts", 0),
    "moai_CA_lang_img": ("language_experts", 1),
    "moai_SA_lang": ("language_experts", 2),
}
GATES = {"moai_GA_img": "image_gate", "moai_GA_lang": "language_gate"}
PROJECTIONS = {"q": "query", "k": "key", "v": "value", "o": "output"}
FACTORS = {"0": "down", "1": "up"}
COMPRESSOR_PARTS = {
    "0.norm_media": "attention.norm_auxiliary",
    "0.norm_latents": "attention.norm_latents",
    "0.to_q": "attention.to_query",
    "0.to_kv": "attention.to_key_value",
    "0.to_out": "attention.to_output",
    "1.0": "feed_forward.norm",
    "1.1": "feed_forward.up",
    "1.3": "feed_forward.down",
}
PROJECTOR_PARTS = {"vision_proj.0": "linear_1", "vision_proj.2": "linear_2"}

_EXPERT_KEY = re.compile(r"model\.layers\.(\d+)\.attention\.(moai_[CS]A_\w+)\.linear_([qkvo])\.([01])\.weight")
_GATE_KEY = re.compile(r"model\.layers\.(\d+)\.attention\.(moai_GA_\w+)\.(weight|bias)")
_COMPRESSOR_KEY = re.compile(r"layers\.(\d+)\.(\d+\.\w+)\.(weight|bias)")


def convert_official_tensor(key: str, tensor: torch.Tensor, sizes: OfficialSizes) -> dict[str, torch.Tensor] | None:
    """Rename one tensor and change its values where the layouts differ.

    Args:
        key: Official name.
        tensor: Its values; a meta tensor gives names and shapes only.
        sizes: Sizes of the checkpoint.

    Returns:
        Our names and tensors; empty for a buffer our model computes itself; None for an unknown key.
    """
    if key.startswith(VISION_PREFIX):
        return _convert_vision(key.removeprefix(VISION_PREFIX), tensor, sizes)
    if key.startswith(COMPRESSOR_PREFIX):
        return _convert_compressor(key.removeprefix(COMPRESSOR_PREFIX), tensor)
    for old, new in PROJECTOR_PARTS.items():
        if key in (f"{old}.weight", f"{old}.bias"):
            return {f"model.multi_modal_projector.{new}.{key.rsplit('.', 1)[1]}": tensor}
    if ".moai_" in key:
        return _convert_mixer(key, tensor, sizes)
    if key in ("model.tok_embeddings.weight", "output.weight"):
        tensor = fit_rows(tensor, sizes.vocab_size)
    return convert_decoder_tensor(key, tensor, sizes.attention, has_partial_lora=sizes.has_partial_lora)


def fit_rows(table: torch.Tensor, rows: int) -> torch.Tensor:
    """Cut a vocabulary table or fill it up with zero rows (the image placeholder is neither read nor generated)."""
    if table.shape[0] >= rows:
        return table[:rows]
    return torch.cat([table, table.new_zeros(rows - table.shape[0], table.shape[1])])


def _convert_vision(name: str, tensor: torch.Tensor, sizes: OfficialSizes) -> dict[str, torch.Tensor]:
    if name == "embeddings.position_ids":
        return {}  # a buffer: 0, 1, 2, ...
    if name == "embeddings.position_embedding.weight":
        tensor = resize_position_table(tensor, sizes.grid)
    return {f"model.vision_tower.{name}": tensor}


def _convert_compressor(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor] | None:
    if name == "latents":
        return {"model.compressor.latents.weight": tensor}
    if name in ("norm.weight", "norm.bias"):
        return {f"model.compressor.{name}": tensor}
    match = _COMPRESSOR_KEY.fullmatch(name)
    if match is None or match[2] not in COMPRESSOR_PARTS:
        return None
    return {f"model.compressor.stack.layers.{match[1]}.{COMPRESSOR_PARTS[match[2]]}.{match[3]}": tensor}


def _convert_mixer(key: str, tensor: torch.Tensor, sizes: OfficialSizes) -> dict[str, torch.Tensor] | None:
    match = _GATE_KEY.fullmatch(key)
    if match is not None and match[2] in GATES:
        ordinal = sizes.mixer_layers.index(int(match[1]))
        return {f"model.mixers.layers.{ordinal}.{GATES[match[2]]}.{match[3]}": tensor}
    match = _EXPERT_KEY.fullmatch(key)
    if match is None or match[2] not in EXPERTS:
        return None
    ordinal = sizes.mixer_layers.index(int(match[1]))
    stream, place = EXPERTS[match[2]]
    target = f"{stream}.{place}.{PROJECTIONS[match[3]]}.{FACTORS[match[4]]}"
    return {f"model.mixers.layers.{ordinal}.{target}": tensor}
