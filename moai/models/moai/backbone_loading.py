"""Pretrained language models as plain tensors with their configuration."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from transformers.utils import cached_file

from ...checkpoints.io.hub_download import download_checkpoint
from ...checkpoints.io.tensor_folder import TensorFolder, list_names
from ..backbones import Backbone, check_loaded, own_tensors
from .configuration_moai import DECODER_FAMILIES
from .internlm2 import build_llama_fields, convert_decoder_tensor, derive_attention_sizes

INTERNLM2_MODEL_TYPE = "internlm2"


def load_text_backbone(text: Any, gguf_file: str | None = None) -> Backbone:
    """Load a causal language model.

    Args:
        text: Folder or hub name of a Llama, SmolLM2, Mistral, Qwen2 or Qwen3 model, of an InternLM2 in its own format
            (read here, no remote code), or path of a .gguf file; or a loaded causal model, which is copied.
        gguf_file: Name of a GGUF file inside the folder or hub repository; its weights are dequantised.

    Returns:
        Its decoder and head.

    Raises:
        ValueError: If the family is not supported, or weights are missing.
    """
    if isinstance(text, PreTrainedModel):
        return _split_causal_model(text, is_shared=True)
    name, gguf_file = split_gguf_path(str(text), gguf_file)
    if gguf_file is None and read_model_type(name) == INTERNLM2_MODEL_TYPE:
        return _load_internlm2(resolve_folder(name))
    settings: dict[str, Any] = {"use_safetensors": True} if gguf_file is None else {"gguf_file": gguf_file}
    _check_family(
        AutoConfig.from_pretrained(name, **({} if gguf_file is None else {"gguf_file": gguf_file})).model_type
    )
    model, info = AutoModelForCausalLM.from_pretrained(name, dtype="auto", output_loading_info=True, **settings)
    check_loaded(name, model, info)
    if gguf_file is not None:  # the weights are plain numbers now; the note that they were packed would be believed
        model.config.__dict__.pop("quantization_config", None)
    return _split_causal_model(model, is_shared=False)


def split_gguf_path(name: str, gguf_file: str | None) -> tuple[str, str | None]:
    """Split the path of a .gguf file into folder and file name, as transformers wants them."""
    if gguf_file is None and name.endswith(".gguf"):
        return str(Path(name).parent), Path(name).name
    return name, gguf_file


def read_model_type(name: str) -> str | None:
    """Read ``model_type`` from a folder's or hub repository's config.json without running its code."""
    file = cached_file(name, "config.json", _raise_exceptions_for_missing_entries=False)
    if file is None:
        return None
    return json.loads(Path(file).read_text(encoding="utf-8")).get("model_type")


def resolve_folder(name: str) -> Path:
    """Return the folder itself, or that of a hub repository's weights, configuration and tokenizer."""
    return Path(name) if Path(name).is_dir() else download_checkpoint(name)


def _check_family(family: str) -> None:
    if family not in DECODER_FAMILIES:
        raise ValueError(
            f"Expected a decoder of one of the families {(*DECODER_FAMILIES, INTERNLM2_MODEL_TYPE)}, got {family!r}. "
            "Choose another language model."
        )


def _split_causal_model(model: PreTrainedModel, *, is_shared: bool) -> Backbone:
    _check_family(model.config.model_type)
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(
            f"Expected a causal language model, got {type(model).__name__} without output head. Load it with "
            "AutoModelForCausalLM."
        )
    if getattr(head, "bias", None) is not None:
        raise ValueError("Expected an output head without bias, got one with. Choose another language model.")
    decoder = model.get_decoder()
    is_tied = head.weight.data_ptr() == decoder.get_input_embeddings().weight.data_ptr()
    config = deepcopy(model.config)
    config.tie_word_embeddings = is_tied
    head_weight = None if is_tied else (head.weight.detach().clone() if is_shared else head.weight.detach())
    return Backbone(config, own_tensors(decoder, is_shared), head_weight)


def _load_internlm2(folder: Path) -> Backbone:
    """InternLM2's own format: fused projections, split here; see :mod:`moai.models.moai.internlm2`."""
    raw_config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = TensorFolder(folder)
    sizes = derive_attention_sizes(raw_config, weights.shapes)
    fields = build_llama_fields(raw_config, weights.shapes, sizes)
    fields.pop("model_type")
    config = LlamaConfig(**fields, vocab_size=weights.shapes["model.tok_embeddings.weight"][0])
    tensors: dict[str, torch.Tensor] = {}
    unknown = []
    for key, tensor in weights:
        targets = convert_decoder_tensor(key, tensor, sizes, prefix="")
        if targets is None:
            unknown.append(key)
        else:
            tensors |= {name: values.clone() for name, values in targets.items()}
    if unknown:
        raise ValueError(
            f"{folder} holds {len(unknown)} tensor(s) that InternLM2 does not have: {list_names(sorted(unknown))}. "
            "Convert an official MoAI checkpoint with `moai convert` instead."
        )
    with torch.device("meta"):
        expected = AutoModel.from_config(config).state_dict()
    missing = sorted(set(expected) - set(tensors))
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} weight(s): {list_names(missing)}. A shard is missing.")
    head = tensors.pop("lm_head.weight", None)
    return Backbone(config, tensors, head)
