"""Tiny Emus around tiny towers and decoders, saved as anybody would download them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from conversation_builders import make_image
from prompted_builders import build_byte_tokenizer
from transformers import BeitConfig, BeitModel, LlamaConfig, LlamaForCausalLM

from moai.models.emu.backbones import load_tokenizer
from moai.models.emu.configuration_emu import EVA_CLIP_G
from moai.models.emu.image_processing_emu import EmuImageProcessor
from moai.models.emu.modeling_emu import EmuForConditionalGeneration
from moai.models.emu.processing_emu import EmuProcessor
from moai.models.emu.visual_decoder import VisualDecoder

__all__ = ["build_emu", "build_processor", "build_visual_decoder", "make_image", "save_decoder", "save_emu"]

SIDE, NUM_TOKENS, WIDTH = 28, 4, 32
FORMER = {
    "model_type": "t5",
    "d_model": 24,
    "d_kv": 6,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.0,
}


def save_decoder(folder: Path, seed: int = 0, has_turns: bool = False) -> Path:
    """Write a random decoder and its tokenizer, which knows bytes."""
    torch.manual_seed(seed)
    tokenizer = build_byte_tokenizer(*(("[USER]", "[ASSISTANT]") if has_turns else ()))
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2,
        bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_emu(folder: Path, seed: int = 1, has_turns: bool = False, **fields: Any) -> EmuForConditionalGeneration:
    """An Emu whose images are loud, around a decoder that is written into a folder."""
    decoder = save_decoder(folder / "decoder", has_turns=has_turns)
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower = BeitModel(BeitConfig(**EVA_CLIP_G | sizes | {"image_size": SIDE, "initializer_range": 0.2}))
    settings = {"causal_former_config": FORMER, "num_image_tokens": NUM_TOKENS} | fields
    model = EmuForConditionalGeneration.from_backbones(tower, decoder, **settings)
    with torch.no_grad():
        model.model.causal_former.projection.weight.mul_(4)
    return model


def build_processor(folder: Path, **settings: Any) -> EmuProcessor:
    """The processor of :func:`build_emu`'s model."""
    images = EmuImageProcessor(size={"height": SIDE, "width": SIDE})
    tokenizer = load_tokenizer(folder / "decoder")
    return EmuProcessor(images, tokenizer, **{"num_image_tokens": NUM_TOKENS} | settings)


def build_visual_decoder(seed: int = 3) -> VisualDecoder:
    """A random visual decoder of 16 px."""
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel

    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=WIDTH, attention_head_dim=2,
        norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    return VisualDecoder(unet, vae, scheduler).eval()


def save_emu(folder: Path, draws: bool = False, **fields: Any) -> Path:
    """Write a whole Emu; returns its folder."""
    build_emu(folder, **fields).save_pretrained(folder / "emu")
    build_processor(folder).save_pretrained(folder / "emu")
    if draws:
        build_visual_decoder().save_pretrained(folder / "emu" / "visual_decoder")
    return folder / "emu"
