"""Building moai-nano: its decoder, its processor, the whole model around a pretrained decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlamaForCausalLM

from mixer import Mixers
from moai.models.moai.chat_templates import DEMO_CHAT_TEMPLATE, reading_capitals
from moai.models.moai.configuration_moai import MoAIConfig
from moai.models.moai.image_processing_moai import MoAIImageProcessor
from moai.models.moai.modeling_moai import MoAIForConditionalGeneration
from moai.models.moai.processing_moai import MoAIProcessor
from moai.models.moai.tokenization_internlm2 import InternLM2Tokenizer

from .config import MultimodalSettings, NanoConfig

__all__ = ["NANO_CHAT_TEMPLATE", "build_decoder", "build_moai", "build_processor", "replace_tower"]

#: The release's demo prompt; questions in capitals are read in small letters.
NANO_CHAT_TEMPLATE = reading_capitals(DEMO_CHAT_TEMPLATE)
#: About the standard deviation of a new tower's patch embeddings.
POSITION_STD = 3.0


def decoder_config(config: NanoConfig, tokenizer: InternLM2Tokenizer) -> LlamaConfig:
    """The decoder's configuration with the tokenizer's vocabulary filled in."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
        **config.decoder,
    )


def build_decoder(config: NanoConfig, tokenizer: InternLM2Tokenizer) -> LlamaForCausalLM:
    """A decoder with fresh weights drawn from the recipe's seed."""
    torch.manual_seed(config.seed)
    return LlamaForCausalLM(decoder_config(config, tokenizer))


def build_processor(tokenizer_folder: Path, vision: dict[str, Any]) -> MoAIProcessor:
    """The processor. In its prompt answers begin with a space, as words in a verbalization do."""
    size, patch = vision["image_size"], vision["patch_size"]
    return MoAIProcessor(
        MoAIImageProcessor(size={"height": size, "width": size}),
        InternLM2Tokenizer.from_pretrained(tokenizer_folder),
        chat_template=NANO_CHAT_TEMPLATE,
        num_image_tokens=(size // patch) ** 2,
    )


def build_moai(
    config: NanoConfig, settings: MultimodalSettings, tokenizer: InternLM2Tokenizer, decoder: LlamaForCausalLM | None
) -> MoAIForConditionalGeneration:
    """The whole model with fresh compressor, mixers, projector and tower, around a decoder's weights.

    Args:
        config: The recipe.
        settings: Its multimodal part.
        tokenizer: For the image token.
        decoder: Pretrained on text; None leaves fresh weights.
    """
    torch.manual_seed(config.seed + 1)
    model = MoAIForConditionalGeneration(
        MoAIConfig(
            vision_config=CLIPVisionConfig(**settings.vision),
            text_config=decoder_config(config, tokenizer),
            compressor=dict(settings.compressor),
            mixer=dict(settings.mixer),
            image_token_id=tokenizer.convert_tokens_to_ids(tokenizer.image_token),
            tie_word_embeddings=True,
            domain=config.domain,
        )
    )
    _start_as_copies(model.model.mixers)
    _start_positions(model)
    if decoder is not None:
        model.model.language_model.load_state_dict(decoder.model.state_dict())
        model.tie_weights()
    return model


def _start_positions(model: MoAIForConditionalGeneration) -> None:
    """The experts have no positions of their own: a patch can only ask for "its" words if it knows where it is."""
    model.model.vision_tower.embeddings.position_embedding.weight.data.normal_(std=POSITION_STD)


def replace_tower(model: MoAIForConditionalGeneration, vision: dict[str, Any]) -> None:
    """Give a model a new vision tower and projector, with fresh weights.

    Patches will speak the language of latents (:mod:`.patch_recall`), so that question words may look for them as they
    look for latents: their experts start as copies.

    Args:
        model: Changed in place; as many patches as before.
        vision: Fields of CLIPVisionConfig.
    """
    number, config = model.config.num_image_tokens, model.config
    config.vision_config = CLIPVisionConfig(**vision)
    config.num_image_tokens = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    if config.num_image_tokens != number:
        raise ValueError(f"expected a tower of {number} patches, as the processor says, got {config.num_image_tokens}.")
    fresh = MoAIForConditionalGeneration(config).model
    model.model.vision_tower, model.model.multi_modal_projector = fresh.vision_tower, fresh.multi_modal_projector
    _start_positions(model)
    for layer in model.model.mixers.layers:
        of_auxiliary, of_images, _ = layer.language_experts
        of_images.load_state_dict(of_auxiliary.state_dict())


@torch.no_grad()
def _start_as_copies(mixers: Mixers) -> None:
    """Let new experts carry what they attend to as it is, on a random subspace of their rank.

    Value and output projections become one orthogonal projection, so that a word's embedding arrives as itself: the
    decoder can read it before the experts have learned anything.
    """
    for layer in mixers.layers:
        for expert in (*layer.image_experts, *layer.language_experts):
            rank, width = expert.value.down.shape
            basis = torch.linalg.qr(torch.randn(width, rank)).Q
            for projection in (expert.value, expert.output):
                projection.down.copy_(basis.T)
                projection.up.copy_(basis)
