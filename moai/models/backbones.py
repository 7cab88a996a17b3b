"""Pretrained parts as plain tensors with their configuration, and a new model around them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file, logging

from ..checkpoints.io.tensor_folder import list_names

__all__ = [
    "TOKENIZER_FILES",
    "Backbone",
    "Decoder",
    "build_from_parts",
    "check_loaded",
    "find_file",
    "has_tokenizer",
    "load_decoder",
    "load_vision_backbone",
    "own_tensors",
    "read_normalization",
    "resize_rows",
]

#: One of them is there where a tokenizer is.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
#: Not read here, and many towers come without theirs.
_POOLER = "model.vision_tower.pooler."


@dataclass(frozen=True)
class Backbone:
    """A pretrained part.

    Attributes:
        config: Its configuration, a copy.
        tensors: Its tensors by their names inside the part, each owned by nobody else.
        head: ``(vocab_size, D)`` output head of a language model; None where it is tied, or for a tower.
    """

    config: PreTrainedConfig
    tensors: dict[str, torch.Tensor]
    head: torch.Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the part's first floating tensor."""
        return next(tensor.dtype for tensor in self.tensors.values() if tensor.is_floating_point())


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
        table = resize_rows(self.tensors[self.embedding_name], rows)
        head = None if self.head is None else resize_rows(self.head, rows)
        return replace(self, config=config, tensors=self.tensors | {self.embedding_name: table}, head=head)


def load_vision_backbone(vision: Any) -> Backbone:
    """Load a vision tower.

    Args:
        vision: Folder or hub name of a CLIP, SigLIP, DINOv2, ... model, with or without its text half; or a
            loaded model, which is copied.

    Returns:
        The tower alone.

    Raises:
        ValueError: If the model has no vision tower, or weights are missing.
    """
    if not isinstance(vision, PreTrainedModel):
        vision = _load_tower(str(vision))
        tower, is_shared = _find_tower(vision), False
    else:
        tower, is_shared = _find_tower(vision), True
    return Backbone(deepcopy(tower.config), own_tensors(tower, is_shared))


def _load_tower(name: str) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(name)
    vision_config = getattr(config, "vision_config", None)
    is_theirs = type(config).__module__.startswith("transformers.")  # and its tower loads by the names it has inside
    if vision_config is not None and is_theirs and type(vision_config) in AutoModel._model_mapping:
        # The vision half alone: a whole CLIP's text half is not even read.
        loader, settings = AutoModel._model_mapping[type(vision_config)], {"config": vision_config}
    else:
        loader, settings = AutoModel, {}
    model, info = loader.from_pretrained(name, **settings, dtype="auto", use_safetensors=True, output_loading_info=True)
    # A pooler is read by nobody here, and many towers come without theirs: those of TCL and DINO, ...
    missing = {key for key in info["missing_keys"] if not key.startswith("pooler.")}
    check_loaded(name, model, {**info, "missing_keys": missing})
    return model


def _find_tower(model: PreTrainedModel) -> PreTrainedModel:
    if getattr(model.config, "vision_config", None) is None:
        return model
    for name in ("vision_model", "vision_tower"):
        tower = getattr(model, name, None)
        if isinstance(tower, PreTrainedModel):
            return tower
    raise ValueError(
        f"Expected a vision model, got {type(model).__name__} without a `vision_model`. Pass its vision tower itself."
    )


def load_decoder(text: Any) -> Decoder:
    """Load a causal language model.

    Args:
        text: Folder, hub name or loaded model, which is copied.

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


def find_file(name: Any, file: str) -> Path | None:
    """A file of a folder or of a hub repository; None where there is none."""
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    found = cached_file(str(name), file, **quiet)
    return None if found is None else Path(found)


def has_tokenizer(text: Any) -> bool:
    """Whether a folder or hub repository holds a tokenizer."""
    return any(find_file(text, file) for file in TOKENIZER_FILES)


def read_normalization(vision: Any) -> dict[str, Any]:
    """``image_mean``, ``image_std`` and ``rescale_factor`` of a tower's preprocessing, those that it names.

    Args:
        vision: Folder or hub name; None = nothing is known.
    """
    file = None if vision is None else find_file(vision, "preprocessor_config.json")
    given = {} if file is None else json.loads(file.read_text(encoding="utf-8"))
    return {name: given[name] for name in ("image_mean", "image_std", "rescale_factor") if name in given}


def build_from_parts(
    cls: type[PreTrainedModel],
    config: PreTrainedConfig,
    tower: Backbone,
    decoder: Backbone,
    new_parts: Sequence[str],
    dtype: torch.dtype | str | None = None,
    rename: Callable[[str], str] = str,
) -> PreTrainedModel:
    """Build a model around a vision tower and a decoder; the rest of it is new.

    Args:
        cls: The model's class.
        config: Its configuration.
        tower: The vision tower.
        decoder: The language model.
        new_parts: How the names of what is new begin, or what stands in them.
        dtype: Of everything; None or "auto" = the parts' common dtype, or the one that holds both without loss.
        rename: Turns a decoder tensor's name into the model's.

    Returns:
        The model in evaluation mode.
    """
    state = {f"model.vision_tower.{name}": tensor for name, tensor in tower.tensors.items()}
    state |= {f"model.language_model.{rename(name)}": tensor for name, tensor in decoder.tensors.items()}
    if decoder.head is not None:
        state["lm_head.weight"] = decoder.head
    common = torch.promote_types(tower.dtype, decoder.dtype) if dtype in (None, "auto") else dtype
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # that parts are new is meant, and checked below
    try:
        model, info = cls.from_pretrained(None, config=config, state_dict=state, dtype=common, output_loading_info=True)
    finally:
        logging.set_verbosity(verbosity)
    lost = [key for key in info["unexpected_keys"] if not key.startswith(_POOLER)]
    lost += map(str, info["mismatched_keys"])
    drawn = [key for key in info["missing_keys"] if not any(part in key for part in (*new_parts, _POOLER))]
    assert not lost, f"backbone tensors without place: {lost}"
    assert not drawn, f"places without backbone tensor: {drawn}"
    return model.eval()


def check_loaded(name: str, model: PreTrainedModel, info: Any) -> None:
    """Raise where transformers only warns: it initialises missing weights at random."""
    missing = sorted(info["missing_keys"])
    if missing or info["mismatched_keys"]:
        wrong = missing or sorted(str(entry) for entry in info["mismatched_keys"])
        raise ValueError(
            f"{name} lacks {len(wrong)} weight(s) of a {type(model).__name__}: {list_names(wrong)}. Use a complete "
            "checkpoint of that model."
        )


def own_tensors(model: PreTrainedModel, is_shared: bool) -> dict[str, torch.Tensor]:
    """A part's tensors by name; copies where the model is another's too."""
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    return {name: tensor.clone() for name, tensor in tensors.items()} if is_shared else tensors


def resize_rows(table: torch.Tensor, rows: int) -> torch.Tensor:
    """A table with so many rows; new ones are the mean of the old ones, the usual start."""
    if rows <= len(table):
        return table[:rows]
    mean = table.float().mean(dim=0, keepdim=True).to(table.dtype)
    return torch.cat([table, mean.expand(rows - len(table), -1)])
