"""Published OpenFlamingo checkpoints -> a folder for ``moai ask``."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import torch

from ...models.flamingo.backbones import build_generation_config, build_processor
from ...models.flamingo.convert import convert_open_flamingo, looks_like_open_flamingo
from ..io.tensor_folder import TensorFolder
from .driver import ConversionKind, Converted

LICENCES = "Each part's licence holds for its weights: the checkpoint's, the decoder's and the vision tower's."


def _convert(
    weights: TensorFolder,
    source: Path,
    dtype: torch.dtype | None,
    *,
    text: str | Path | None = None,
    vision: str | Path | None = None,
    **config_fields: Any,
) -> Converted:
    """An OpenFlamingo; see :class:`.ConversionKind`.

    ``text`` and ``vision``: folder or hub name of its decoder and of its CLIP; the other settings: see
    :func:`moai.models.flamingo.convert.convert_open_flamingo`.
    """
    if text is None:
        raise ValueError(
            "expected the decoder beside an OpenFlamingo, which is published without it, got none. Give its folder or "
            "hub name (--text mosaicml/mpt-7b), and the vision tower's (--vision openai/clip-vit-large-patch14)."
        )
    converted = convert_open_flamingo(dict(weights), text, vision, **config_fields)
    config, notes = converted.config, converted.notes
    dtypes = [tensor.dtype for tensor in converted.tensors.values() if tensor.is_floating_point()]
    stored = dtype or reduce(torch.promote_types, dtypes)
    config.architectures = ["FlamingoForConditionalGeneration"]
    saved = [build_generation_config(config, converted.tokenizer)]
    if converted.tokenizer is None:
        notes.append(f"no tokenizer in {text}: no processor was written")
    else:
        saved.append(build_processor(config, converted.tokenizer, vision))
    return Converted(
        name="OpenFlamingo",
        config=config,
        tensors=converted.tensors.items(),
        licences=(LICENCES,),
        notes=notes,
        sizes={
            "decoder": f"{config.text_config.model_type}, {config.text_config.num_hidden_layers} layers of "
            f"{config.text_config.hidden_size}, vocabulary {config.text_config.vocab_size}",
            "gated_blocks": config.cross_attention_layers,
            "resampler": f"{config.resampler_depth} layers, {config.num_latents} latents",
            "image_token_id": config.image_token_id,
        },
        stored=stored,
        dtype=stored,
        saved=saved,
    )


KIND = ConversionKind("open-flamingo", looks_like_open_flamingo, _convert, ("text", "vision"))
