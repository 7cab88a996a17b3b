"""Tiny Flamingos around tiny CLIPs and decoders, saved as anybody would download them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from conversation_builders import make_image
from prompted_builders import build_byte_tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedModel,
)

from moai.models.flamingo.backbones import load_tokenizer
from moai.models.flamingo.image_processing_flamingo import FlamingoImageProcessor
from moai.models.flamingo.modeling_flamingo import FlamingoForConditionalGeneration
from moai.models.flamingo.processing_flamingo import FlamingoProcessor

__all__ = [
    "DECODERS",
    "build_flamingo",
    "build_processor",
    "make_image",
    "open_gates",
    "save_decoder",
    "save_flamingo",
    "save_tower",
]

SIDE = 28
#: A configuration per family, all of width 32 and four layers.
DECODERS: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
              "num_key_value_heads": 2, "max_position_embeddings": 512},
    "qwen2": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
              "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True},
    "gpt_neox": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
                 "max_position_embeddings": 512},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 4, "max_seq_len": 512},
}  # fmt: skip
_NEW = {"resampler_depth": 2, "resampler_num_heads": 2, "resampler_head_dim": 8, "num_latents": 3,
        "cross_attention_num_heads": 2, "cross_attention_head_dim": 8}  # fmt: skip


def save_decoder(folder: Path, family: str = "llama", seed: int = 0) -> Path:
    """Write a random decoder and its tokenizer, which knows bytes."""
    torch.manual_seed(seed)
    tokenizer = build_byte_tokenizer()
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **DECODERS[family])
    config.eos_token_id = config.bos_token_id = tokenizer.eos_token_id
    config.initializer_range = 0.2  # loud enough that prompts matter to answers
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tower(folder: Path, seed: int = 1) -> Path:
    """Write a random CLIP vision tower and its preprocessing."""
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=3, image_size=SIDE, patch_size=14
    )
    CLIPVisionModel(config).save_pretrained(folder)
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    CLIPImageProcessor(**size).save_pretrained(folder)
    return folder


def open_gates(model: PreTrainedModel) -> PreTrainedModel:
    """Open the gates of a new Flamingo and make what passes them loud."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_gate"):
                parameter.fill_(1.0)
            elif ".gated_blocks." in name and name.endswith("to_out.weight"):
                parameter.mul_(8)
    return model


def build_flamingo(folder: Path, family: str = "llama", **fields: Any) -> FlamingoForConditionalGeneration:
    """A Flamingo with open gates around backbones that are written into a folder."""
    decoder, tower = save_decoder(folder / "decoder", family), save_tower(folder / "tower")
    torch.manual_seed(2)
    return open_gates(FlamingoForConditionalGeneration.from_backbones(tower, decoder, **{"every": 2} | _NEW | fields))


def build_processor(folder: Path) -> FlamingoProcessor:
    """The processor of :func:`build_flamingo`'s model."""
    images = FlamingoImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return FlamingoProcessor(images, load_tokenizer(folder / "decoder"))


def save_flamingo(folder: Path, family: str = "llama", **fields: Any) -> Path:
    """Write a whole Flamingo; returns its folder."""
    model = build_flamingo(folder, family, **fields)
    model.save_pretrained(folder / "flamingo")
    build_processor(folder).save_pretrained(folder / "flamingo")
    return folder / "flamingo"
