"""Published OpenFlamingo checkpoints -> a folder for ``moai ask``."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import torch

from ...models.flamingo.backbones import build_generation_config, build_processor
from ...models.flamingo.convert import convert_open_flamingo, looks_like_open_flamingo
from ..io.tensor_folder import TensorFolder
from .driver import ConversionKind, Converted, write_converted
from .report import ConversionReport

LICENCES = "Each part's licence holds for its weights: the checkpoint's, the decoder's and the vision tower's."


def convert_flamingo(
    weights: TensorFolder,
    source: Path,
    output: Path,
    *,
    text: str | Path | None = None,
    vision: str | Path | None = None,
    dtype: torch.dtype | None = None,
    force: bool = False,
    origin: str | None = None,
    **config_fields: Any,
) -> ConversionReport:
    """Convert a published OpenFlamingo.

    Args:
        weights: Of its ``checkpoint.pt``.
        source: Where they lie.
        output: Folder to create; it appears only when everything succeeded.
        text: Folder or hub name of its decoder.
        vision: Likewise of its CLIP.
        dtype: Of the weights written; None = one that holds all parts without loss.
        force: Replace an existing output.
        origin: What report and card call the source; None = its path in the report.
        **config_fields: See :func:`moai.models.flamingo.convert.convert_open_flamingo`.

    Returns:
        An account of what was read and written.

    Raises:
        ValueError: A part is not given, or the parts do not fit.
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
    made = Converted(
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
        saved=saved,
    )
    return write_converted(
        made, kind=KIND.name, source=source, output=output, num_source_tensors=len(weights.tensors), stored=stored,
        dtype=stored, force=force, origin=origin,
    )  # fmt: skip


KIND = ConversionKind("open-flamingo", looks_like_open_flamingo, convert_flamingo, ("text", "vision"))
