"""A new Flamingo from a pretrained vision tower and a pretrained language model.

The backbones' numbers are taken as they are; resampler and gated blocks are new, and their gates closed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..backbones import build_from_parts, has_tokenizer, load_decoder, load_vision_backbone, read_normalization
from .configuration_flamingo import FlamingoConfig, every_nth_layer
from .image_processing_flamingo import FlamingoImageProcessor
from .processing_flamingo import FlamingoProcessor
from .prompts import END_OF_CHUNK_TOKEN, IMAGE_TOKEN, PAD_TOKEN

__all__ = [
    "build_from_backbones",
    "build_generation_config",
    "build_processor",
    "load_tokenizer",
    "select_vision_features",
]

NEW_PARTS = ("model.resampler.", "model.gated_blocks.")
#: Towers without a class token.
_PATCHES_ONLY = ("siglip_vision_model", "siglip2_vision_model")


def load_tokenizer(text: Any) -> PreTrainedTokenizerBase | None:
    """A language model's tokenizer with OpenFlamingo's tokens, in its order; None where there is none.

    Args:
        text: Folder or hub name.
    """
    if isinstance(text, PreTrainedModel) or not has_tokenizer(text):
        return None
    tokenizer = AutoTokenizer.from_pretrained(str(text), padding_side="left", trust_remote_code=False)
    tokens = [token for token in (END_OF_CHUNK_TOKEN, IMAGE_TOKEN) if token not in tokenizer.get_vocab()]
    tokenizer.add_special_tokens({"extra_special_tokens": tokens}, replace_extra_special_tokens=False)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    return tokenizer


def select_vision_features(vision_config: PreTrainedConfig) -> str:
    """``vision_feature_select_strategy`` of a tower."""
    return "full" if vision_config.model_type in _PATCHES_ONLY else "default"


def build_generation_config(config: FlamingoConfig, tokenizer: PreTrainedTokenizerBase | None) -> GenerationConfig:
    """How a model ends its answers: with ``<|endofchunk|>``, as the released code does."""
    end = config.end_of_chunk_token_id
    pad = end if tokenizer is None or tokenizer.pad_token_id is None else tokenizer.pad_token_id
    bos = getattr(config.text_config, "bos_token_id", None)
    return GenerationConfig(bos_token_id=bos, eos_token_id=end, pad_token_id=pad)


def build_processor(
    config: FlamingoConfig, tokenizer: PreTrainedTokenizerBase, vision: str | Path | None
) -> FlamingoProcessor:
    """A model's processor: its tower's image size, mean and standard deviation.

    Args:
        config: The model's.
        tokenizer: From :func:`load_tokenizer`.
        vision: Folder or hub name of the tower, with its preprocessing; None = CLIP's.
    """
    side = config.vision_config.image_size
    settings: dict[str, Any] = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    return FlamingoProcessor(FlamingoImageProcessor(**settings | read_normalization(vision)), tokenizer)


def build_from_backbones(
    cls: type[PreTrainedModel],
    vision: str | Path | PreTrainedModel,
    text: str | Path | PreTrainedModel,
    *,
    every: int = 4,
    dtype: torch.dtype | str | None = None,
    **config_fields: Any,
) -> PreTrainedModel:
    """Build a Flamingo around two pretrained backbones.

    Args:
        cls: ``FlamingoForConditionalGeneration`` or a subclass.
        vision: Folder, hub name or loaded model of a vision tower, see
            :func:`moai.models.backbones.load_vision_backbone`.
        text: Likewise of a decoder of Llama's kind, an MPT or a GPT-NeoX.
        every: A gated block in front of every so many decoder layers.
        dtype: Of everything; None = the backbones' common dtype, or the one that holds both without loss.
        **config_fields: Other fields of :class:`FlamingoConfig`, which win. Without ``image_token_id`` and
            ``end_of_chunk_token_id`` the ids are those that the decoder's tokenizer gives the two tokens.

    Returns:
        The model in evaluation mode. The backbones' tensors equal the originals bit by bit.

    Raises:
        ValueError: A backbone is incomplete or of an unsupported kind, or a field does not fit.
    """
    tower, decoder, tokenizer = load_vision_backbone(vision), load_decoder(text), load_tokenizer(text)
    rows = decoder.config.vocab_size
    if tokenizer is None:
        ids = {"end_of_chunk_token_id": rows, "image_token_id": rows + 1}
    else:
        end, image = tokenizer.convert_tokens_to_ids([END_OF_CHUNK_TOKEN, IMAGE_TOKEN])
        ids = {"end_of_chunk_token_id": end, "image_token_id": image}
        rows = max(rows, len(tokenizer))
    fields = ids | {"vision_feature_select_strategy": select_vision_features(tower.config)} | config_fields
    decoder = decoder.with_rows(max(rows, *(fields[name] + 1 for name in ids)))
    fields.setdefault("cross_attention_layers", every_nth_layer(decoder.config.num_hidden_layers, every))
    fields.setdefault("tie_word_embeddings", decoder.head is None)
    config = FlamingoConfig(vision_config=tower.config, text_config=decoder.config, **fields)
    model = build_from_parts(cls, config, tower, decoder, NEW_PARTS, dtype)
    model.generation_config = build_generation_config(config, tokenizer)
    return model
