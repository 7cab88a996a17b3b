"""A new Emu from a pretrained vision tower and a pretrained language model.

The backbones' numbers are taken as they are; the causal former and the regression head are new.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..backbones import build_from_parts, has_tokenizer, load_decoder, load_vision_backbone, read_normalization
from .configuration_emu import EmuConfig
from .image_processing_emu import EmuImageProcessor
from .processing_emu import EmuProcessor
from .prompts import INSTRUCT_TOKENS, PAD_TOKEN, SPECIAL_TOKENS

__all__ = ["build_from_backbones", "build_processor", "load_tokenizer"]

NEW_PARTS = ("model.vision_norm.", "model.causal_former.", "regression_head.")


def load_tokenizer(text: str | Path, has_turns: bool = False) -> PreTrainedTokenizerBase | None:
    """A language model's tokenizer with Emu's tokens behind its own, in the order of the released weights.

    Args:
        text: Folder or hub name.
        has_turns: Add Emu-I's ``[USER]`` and ``[ASSISTANT]`` too.

    Returns:
        The tokenizer; None where there is none.
    """
    if isinstance(text, PreTrainedModel) or not has_tokenizer(text):
        return None
    tokenizer = AutoTokenizer.from_pretrained(str(text), padding_side="left", trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    wanted = [t for t in (*SPECIAL_TOKENS, *(INSTRUCT_TOKENS if has_turns else ())) if t != PAD_TOKEN]
    tokens = [token for token in wanted if token not in tokenizer.get_vocab()]
    tokenizer.add_special_tokens({"extra_special_tokens": tokens}, replace_extra_special_tokens=False)
    return tokenizer


def build_processor(
    config: EmuConfig, tokenizer: PreTrainedTokenizerBase, vision: str | Path | None, has_turns: bool = False
) -> EmuProcessor:
    """A model's processor: its tower's image size, mean and standard deviation.

    Args:
        config: The model's.
        tokenizer: From :func:`load_tokenizer`.
        vision: Folder or hub name of the tower, with its preprocessing; None = CLIP's.
        has_turns: Whether questions are written as Emu-I's by default.
    """
    side = config.vision_config.image_size
    settings: dict[str, Any] = {"size": {"height": side, "width": side}}
    return EmuProcessor(
        EmuImageProcessor(**settings | read_normalization(vision)),
        tokenizer,
        num_image_tokens=config.num_image_tokens,
        default_prompt="chat" if has_turns else "plain",
    )


def build_from_backbones(
    cls: type[PreTrainedModel],
    vision: str | Path | PreTrainedModel,
    text: str | Path | PreTrainedModel,
    *,
    dtype: torch.dtype | str | None = None,
    **config_fields: Any,
) -> PreTrainedModel:
    """Build an Emu around two pretrained backbones.

    Args:
        cls: ``EmuForConditionalGeneration`` or a subclass.
        vision: Folder, hub name or loaded model of a vision tower, see
            :func:`moai.models.backbones.load_vision_backbone`.
        text: Likewise of a causal decoder of Llama's kind. New rows of its embeddings are the mean of the old ones.
        dtype: Of everything; None = the backbones' common dtype, or the one that holds both without loss.
        **config_fields: Other fields of :class:`EmuConfig`, which win. Without ids of the three tokens they are those
            that the decoder's tokenizer gives them, else the next behind the vocabulary.

    Returns:
        The model in evaluation mode. The backbones' tensors equal the originals bit by bit.

    Raises:
        ValueError: A backbone is incomplete or of an unsupported kind, or a field does not fit.
    """
    tower, decoder, tokenizer = load_vision_backbone(vision), load_decoder(text), load_tokenizer(text)
    rows = decoder.config.vocab_size
    if tokenizer is None:
        found = [rows, rows + 1, rows + 2]
    else:
        found = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS[1:]))
        rows = max(rows, len(tokenizer))
    ids = dict(zip(("image_start_token_id", "image_end_token_id", "image_token_id"), found, strict=True))
    fields = ids | config_fields
    decoder = decoder.with_rows(max(rows, *(fields[name] + 1 for name in ids)))
    fields.setdefault("tie_word_embeddings", decoder.head is None)
    config = EmuConfig(vision_config=tower.config, text_config=decoder.config, **fields)
    model = build_from_parts(cls, config, tower, decoder, NEW_PARTS, dtype)
    pad = None if tokenizer is None else tokenizer.pad_token_id
    if pad is not None:
        model.generation_config.pad_token_id = pad
    if tokenizer is not None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model
