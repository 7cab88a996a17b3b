"""A new Flamingo from a pretrained vision tower and a pretrained language model.

The backbones' numbers are taken as they are; resampler and gated blocks are new, and their gates closed.
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file, logging

from ..backbones import Backbone, check_loaded, load_vision_backbone, own_tensors
from .configuration_flamingo import FlamingoConfig, every_nth_layer
from .image_processing_flamingo import FlamingoImageProcessor
from .injection import find_layers
from .processing_flamingo import FlamingoProcessor
from .prompts import END_OF_CHUNK_TOKEN, IMAGE_TOKEN, PAD_TOKEN

__all__ = [
    "Decoder",
    "build_from_backbones",
    "build_generation_config",
    "build_processor",
    "load_decoder",
    "load_tokenizer",
    "select_vision_features",
]

NEW_PARTS = ("model.resampler.", "model.gated_blocks.")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
#: Towers without a class token.
_PATCHES_ONLY = ("siglip_vision_model", "siglip2_vision_model")


@dataclass(frozen=True)
class Decoder(Backbone):
    """A language model.

    Attributes:
        embedding_name: Of its word embedding among ``tensors``.
        prefix: What stands in front of the decoder's names in the whole language model.
    """

    embedding_name: str = ""
    prefix: str = ""

    def with_rows(self, rows: int) -> Decoder:
        """The decoder with a vocabulary of another size; new rows are the mean of the old ones, the usual start."""
        config = deepcopy(self.config)
        config.vocab_size = rows
        table = _resize_rows(self.tensors[self.embedding_name], rows)
        head = None if self.head is None else _resize_rows(self.head, rows)
        return replace(self, config=config, tensors=self.tensors | {self.embedding_name: table}, head=head)


def _resize_rows(table: torch.Tensor, rows: int) -> torch.Tensor:
    if rows <= len(table):
        return table[:rows]
    mean = table.float().mean(dim=0, keepdim=True).to(table.dtype)
    return torch.cat([table, mean.expand(rows - len(table), -1)])


def load_decoder(text: Any) -> Decoder:
    """Load a causal language model.

    Args:
        text: Folder, hub name or loaded model (which is copied) of Llama's kind, an MPT or a GPT-NeoX.

    Raises:
        ValueError: Weights are missing, or it is built otherwise.
    """
    is_shared = isinstance(text, PreTrainedModel)
    model = text
    if not is_shared:
        name = str(text)
        try:
            AutoConfig.from_pretrained(name, trust_remote_code=False)
        except ValueError as error:
            raise ValueError(
                f"expected a decoder that transformers has, got {name}, which it has not (OpenFlamingo-3B's MPT-1B is "
                "such a one; its code is not run here). Take another."
            ) from error
        # Some decoders of OpenFlamingo lie on the hub as *.bin only, which transformers opens with weights_only.
        model, info = AutoModelForCausalLM.from_pretrained(
            name, dtype="auto", trust_remote_code=False, weights_only=True, output_loading_info=True
        )
        check_loaded(name, model, info)
    decoder, head = model.base_model, model.get_output_embeddings()
    find_layers(decoder)
    if head is None or getattr(head, "bias", None) is not None:
        raise ValueError(
            f"expected a causal language model with an output head without bias, got {type(model).__name__}. Choose "
            "another."
        )
    embedding = decoder.get_input_embeddings()
    is_tied = head.weight.data_ptr() == embedding.weight.data_ptr()
    config = deepcopy(model.config)
    config.tie_word_embeddings = is_tied
    weight = head.weight.detach()
    return Decoder(
        config,
        own_tensors(decoder, is_shared),
        None if is_tied else weight.clone() if is_shared else weight,
        embedding_name=next(name for name, part in decoder.named_modules() if part is embedding) + ".weight",
        prefix=model.base_model_prefix + ".",
    )


def load_tokenizer(text: Any) -> PreTrainedTokenizerBase | None:
    """A language model's tokenizer with OpenFlamingo's tokens, in its order; None where there is none.

    Args:
        text: Folder or hub name.
    """
    missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    if isinstance(text, PreTrainedModel) or not any(cached_file(text, f, **missing) for f in _TOKENIZER_FILES):
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
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    file = None if vision is None else cached_file(str(vision), "preprocessor_config.json", **quiet)
    if file is not None:
        given = json.loads(Path(file).read_text(encoding="utf-8"))
        settings |= {name: given[name] for name in ("image_mean", "image_std", "rescale_factor") if name in given}
    return FlamingoProcessor(FlamingoImageProcessor(**settings), tokenizer)


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
        text: Likewise of a decoder; see :func:`load_decoder`.
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
    state = {f"model.vision_tower.{name}": tensor for name, tensor in tower.tensors.items()}
    state |= {f"model.language_model.{name}": tensor for name, tensor in decoder.tensors.items()}
    if decoder.head is not None:
        state["lm_head.weight"] = decoder.head
    common = torch.promote_types(tower.dtype, decoder.dtype) if dtype in (None, "auto") else dtype
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # that parts are new is meant, and checked below
    try:
        model, info = cls.from_pretrained(None, config=config, state_dict=state, dtype=common, output_loading_info=True)
    finally:
        logging.set_verbosity(verbosity)
    assert not info["unexpected_keys"], info
    assert not info["mismatched_keys"], info
    assert all(key.startswith(NEW_PARTS) for key in info["missing_keys"]), info
    model.generation_config = build_generation_config(config, tokenizer)
    return model.eval()
