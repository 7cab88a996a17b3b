"""A new Emu from a pretrained vision tower and a pretrained language model.

The backbones' numbers are taken as they are; the causal former and the regression head are new.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file, logging

from ..backbones import check_loaded, load_vision_backbone, own_tensors
from .configuration_emu import EmuConfig
from .image_processing_emu import EmuImageProcessor
from .processing_emu import EmuProcessor
from .prompts import INSTRUCT_TOKENS, PAD_TOKEN, SPECIAL_TOKENS

__all__ = ["build_from_backbones", "build_processor", "load_tokenizer"]

NEW_PARTS = ("model.vision_norm.", "model.causal_former.", "regression_head.")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def load_tokenizer(text: str | Path, has_turns: bool = False) -> PreTrainedTokenizerBase | None:
    """A language model's tokenizer with Emu's tokens behind its own, in the order of the released weights.

    Args:
        text: Folder or hub name.
        has_turns: Add Emu-I's ``[USER]`` and ``[ASSISTANT]`` too.

    Returns:
        The tokenizer; None where there is none.
    """
    missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    if not any(cached_file(str(text), file, **missing) for file in _TOKENIZER_FILES):
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
    missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    file = None if vision is None else cached_file(str(vision), "preprocessor_config.json", **missing)
    if file is not None:
        given = json.loads(Path(file).read_text(encoding="utf-8"))
        settings |= {name: given[name] for name in ("image_mean", "image_std", "rescale_factor") if name in given}
    return EmuProcessor(
        EmuImageProcessor(**settings),
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
    tower = load_vision_backbone(vision)
    is_shared = isinstance(text, PreTrainedModel)
    decoder = text
    if not is_shared:
        decoder, info = AutoModelForCausalLM.from_pretrained(
            str(text), dtype="auto", trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
        check_loaded(str(text), decoder, info)
    head, embedding = decoder.get_output_embeddings(), decoder.base_model.get_input_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        raise ValueError(
            f"expected a causal language model with an output head without bias, got {type(decoder).__name__}. Choose "
            "another."
        )
    tokenizer = None if is_shared else load_tokenizer(text)
    old_rows = decoder.config.vocab_size
    if tokenizer is None:
        start = old_rows
        ids = {"image_start_token_id": start, "image_end_token_id": start + 1, "image_token_id": start + 2}
        rows = old_rows + 3
    else:
        found = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS[1:]))
        ids = dict(zip(("image_start_token_id", "image_end_token_id", "image_token_id"), found, strict=True))
        rows = max(old_rows, len(tokenizer))
    fields = ids | config_fields
    rows = max(rows, *(fields[name] + 1 for name in ids))
    is_tied = head.weight.data_ptr() == embedding.weight.data_ptr()
    text_config = type(decoder.config).from_dict(decoder.config.to_dict() | {"vocab_size": rows})
    text_config.tie_word_embeddings = is_tied
    fields.setdefault("tie_word_embeddings", is_tied)
    config = EmuConfig(vision_config=tower.config, text_config=text_config, **fields)
    inner = own_tensors(decoder.base_model, is_shared)
    table = next(name for name, part in decoder.base_model.named_modules() if part is embedding) + ".weight"
    inner[table] = _resize_rows(inner[table], rows)
    state = {f"model.vision_tower.{name}": tensor for name, tensor in tower.tensors.items()}
    state |= {f"model.language_model.{name}": tensor for name, tensor in inner.items()}
    if not is_tied:
        state["lm_head.weight"] = _resize_rows(head.weight.detach().clone(), rows)
    common = torch.promote_types(tower.dtype, inner[table].dtype) if dtype in (None, "auto") else dtype
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # that parts are new is meant, and checked below
    try:
        model, info = cls.from_pretrained(None, config=config, state_dict=state, dtype=common, output_loading_info=True)
    finally:
        logging.set_verbosity(verbosity)
    assert all(key.startswith("model.vision_tower.pooler.") for key in info["unexpected_keys"]), info
    assert not info["mismatched_keys"], info
    assert all(key.startswith(NEW_PARTS) for key in info["missing_keys"]), info
    pad = None if tokenizer is None else tokenizer.pad_token_id
    if pad is not None:
        model.generation_config.pad_token_id = pad
    if tokenizer is not None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model.eval()


def _resize_rows(table: torch.Tensor, rows: int) -> torch.Tensor:
    if rows <= len(table):
        return table[:rows]
    mean = table.float().mean(dim=0, keepdim=True).to(table.dtype)
    return torch.cat([table, mean.expand(rows - len(table), -1)])
