"""Official-format MoAI checkpoints to ours.

An official-format folder holds config.json, weights under the released code's names (``*.safetensors`` or ``*.bin``,
sharded or not) and tokenizer.model. Tensors are streamed one by one, so that memory stays near one output shard.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from ...models.moai.configuration_moai import MoAIConfig
from ...models.moai.modeling_moai import MoAIForConditionalGeneration
from ...models.moai.tokenization_internlm2 import CHAT_TOKENS, IMAGE_TOKEN, InternLM2Tokenizer
from ..io.key_check import check_keys
from ..io.tensor_folder import TensorFolder
from .driver import ConversionKind, Converted, find_family
from .official_config import OfficialSizes, build_official_config, looks_official
from .official_keys import convert_official_tensor
from .official_processor import build_official_processor
from .published_verbalizers import PublishedVerbalizers

_ABOUT = (
    "The source's licence holds for these weights, each",
    "computer vision model's own for its weights.",
    "",
    "`verbalizers.json` names the models that look, with the thresholds of the released code.",
)
_ADVICE = "Check that all shards and the right config.json are there."


def _convert(
    weights: TensorFolder,
    source: Path,
    dtype: torch.dtype | None,
    *,
    image_size: int | None = None,
    verbalizers: PublishedVerbalizers | None = None,
) -> Converted:
    """A MoAI in its official format; see :class:`.ConversionKind`.

    The folder written is whole: model, processor, ``verbalizers.json`` with what the release looks with, and a card.
    ``image_size``: side of images in pixels, None = the source's (490 for the released weights); ``verbalizers``: who
    looks, None = the published models, by their names on the hub.
    """
    raw_config = read_config(source)
    tokenizer = _load_tokenizer(source)
    notes: list[str] = []
    image_token_id = None if tokenizer is None else tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    config, sizes = build_official_config(
        raw_config, weights.shapes, tokenizer_image_token_id=image_token_id, image_size=image_size
    )
    _note_differences(raw_config, weights, config, sizes, notes)
    convert = partial(convert_official_tensor, sizes=sizes)
    check_keys(source, weights.shapes, convert, MoAIForConditionalGeneration, config, _ADVICE)
    config.architectures = ["MoAIForConditionalGeneration"]
    saved = [_generation_config(raw_config, tokenizer, config)]
    if tokenizer is not None:
        saved.append(build_official_processor(tokenizer, raw_config, config))

    def write_verbalizers(folder: Path) -> list[str]:
        notes.extend((verbalizers or PublishedVerbalizers()).write(folder))
        if tokenizer is None:
            notes.append(f"no tokenizer.model in {source.name}: no processor was written")
        return []

    return Converted(
        name="MoAI",
        config=config,
        tensors=(pair for key, tensor in weights for pair in convert(key, tensor).items()),
        licences=_ABOUT,
        notes=notes,
        sizes=_describe(config, sizes),
        stored=dtype or weights.main_dtype,
        dtype=dtype,
        saved=saved,
        finish=write_verbalizers,
        family=lambda name: "partial_lora" if ".update.lora_" in name else find_family(name),
    )


def read_config(source: Path) -> dict[str, Any]:
    """Read a folder's config.json.

    Raises:
        ValueError: If there is none or it is no JSON object.
    """
    file = source / "config.json"
    if not file.is_file():
        raise ValueError(f"Expected {file}, got no such file. Copy the checkpoint's config.json beside its weights.")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no JSON ({error}). Fetch it again.") from error
    if not isinstance(config, dict):
        raise ValueError(f"Expected {file} to hold a JSON object, got {type(config).__name__}. Fetch it again.")
    return config


def _load_tokenizer(source: Path) -> InternLM2Tokenizer | None:
    file = source / "tokenizer.model"
    return InternLM2Tokenizer(str(file)) if file.is_file() else None


def _note_differences(
    raw_config: dict[str, Any], weights: TensorFolder, config: MoAIConfig, sizes: OfficialSizes, notes: list[str]
) -> None:
    declared = raw_config.get("image_token_index")
    if declared is not None and declared != config.image_token_id:
        notes.append(f"<image> has the tokenizer's id {config.image_token_id}; config.json said {declared}")
    for key in ("model.tok_embeddings.weight", "output.weight"):
        rows = weights.shapes.get(key, (sizes.vocab_size,))[0]
        if rows > sizes.vocab_size:
            notes.append(f"{key}: {rows - sizes.vocab_size} row(s) behind the vocabulary were left out")
        elif sizes.vocab_size - rows > 1:
            notes.append(f"{key}: {sizes.vocab_size - rows} rows of zeros were added; none of them is trained")
    rows = weights.shapes["vit.vision_tower.vision_model.embeddings.position_embedding.weight"][0]
    if rows != sizes.grid**2 + 1:
        notes.append(f"the position table of {rows} rows was resized to {sizes.grid} x {sizes.grid} patches")


def _generation_config(
    raw_config: dict[str, Any], tokenizer: InternLM2Tokenizer | None, config: MoAIConfig
) -> GenerationConfig:
    eos = raw_config.get("eos_token_id", 2)
    eos_ids = list(eos) if isinstance(eos, (list, tuple)) else [eos]
    vocabulary = {} if tokenizer is None else tokenizer.get_vocab()
    if CHAT_TOKENS[1] in vocabulary:  # closes a turn: the release cuts its answers there
        eos_ids.append(vocabulary[CHAT_TOKENS[1]])
    pad = raw_config.get("tokenizer_pad_id", 2 if tokenizer is None else tokenizer.pad_token_id)
    return GenerationConfig(
        bos_token_id=raw_config.get("bos_token_id", 1),
        eos_token_id=eos_ids if len(eos_ids) > 1 else eos_ids[0],
        pad_token_id=pad,
    )


def _describe(config: MoAIConfig, sizes: OfficialSizes) -> dict[str, Any]:
    text, vision = config.text_config, config.vision_config
    return {
        "decoder": f"{text.num_hidden_layers} layers of {text.hidden_size}, {text.num_attention_heads} heads, "
        f"{text.num_key_value_heads} key-value heads, vocabulary {text.vocab_size}",
        "rope": dict(text.rope_parameters),
        "partial_lora_rank": config.plora_rank,
        "vision": f"{vision.num_hidden_layers} layers of {vision.hidden_size}, {vision.image_size} px, "
        f"{config.num_image_tokens} patch tokens",
        "compressor": f"{config.compressor['num_layers']} layers, {config.compressor['num_latents']} latents",
        "mixer_layers": list(sizes.mixer_layers),
        "image_token_id": config.image_token_id,
    }


KIND = ConversionKind("official-moai", looks_official, _convert, ("image_size", "verbalizers"))
