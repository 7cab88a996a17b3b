"""Published OpenFlamingo checkpoints -> a folder for ``moai ask``."""

from __future__ import annotations

from collections import Counter
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from verbalizers.core.durable_files import atomic_folder

from ...models.flamingo.backbones import build_generation_config, build_processor
from ...models.flamingo.convert import convert_open_flamingo, looks_like_open_flamingo
from ..io.checkpoint_file import find_checkpoint_file, list_tensor_names, read_checkpoint_file
from ..io.tensor_writing import ShardedWriter
from .model_card import write_card
from .report import ConversionReport

KIND = "open-flamingo"
LICENCES = "Each part's licence holds for its weights: the checkpoint's, the decoder's and the vision tower's."


def is_open_flamingo(source: Path) -> bool:
    """Whether a path is the file of an OpenFlamingo, or a folder with nothing but that for weights."""
    file = find_checkpoint_file(source)
    if file is None:
        return False
    try:
        return looks_like_open_flamingo(list_tensor_names(file))
    except ValueError:
        return False  # what is wrong is told by the kind that it turns out to be


def convert_open_flamingo_checkpoint(
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
        source: Its ``checkpoint.pt``, or the folder that holds it.
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
    file = find_checkpoint_file(source)
    if file is None:
        raise ValueError(f"expected the file of an OpenFlamingo, got {source}. Give its checkpoint.pt.")
    tensors = read_checkpoint_file(file)
    converted = convert_open_flamingo(tensors, text, vision, **config_fields)
    config, notes = converted.config, converted.notes
    dtypes = [tensor.dtype for tensor in converted.tensors.values() if tensor.is_floating_point()]
    config.dtype = stored = dtype or reduce(torch.promote_types, dtypes)
    config.architectures = ["FlamingoForConditionalGeneration"]
    families: Counter[str] = Counter()
    with atomic_folder(output, force=force) as folder:
        writer = ShardedWriter(folder)
        for name, tensor in converted.tensors.items():
            writer.add(name, tensor.to(stored) if tensor.is_floating_point() else tensor)
            families[name.split(".")[1] if name.startswith("model.") else "lm_head"] += tensor.numel()
        files = writer.finish()
        config.save_pretrained(folder)
        build_generation_config(config, converted.tokenizer).save_pretrained(folder)
        if converted.tokenizer is None:
            notes.append(f"no tokenizer in {text}: no processor was written")
        else:
            build_processor(config, converted.tokenizer, vision).save_pretrained(folder)
        write_card(folder, origin or source.name, notes, "OpenFlamingo", (LICENCES,))
    return ConversionReport(
        kind=KIND,
        source=origin or source,
        output=output,
        num_source_tensors=len(tensors),
        num_tensors=writer.num_tensors,
        num_parameters=writer.num_parameters,
        num_bytes=writer.num_bytes,
        dtype=str(stored).removeprefix("torch."),
        families=dict(families),
        files=tuple(files),
        sizes={
            "decoder": f"{config.text_config.model_type}, {config.text_config.num_hidden_layers} layers of "
            f"{config.text_config.hidden_size}, vocabulary {config.text_config.vocab_size}",
            "gated_blocks": config.cross_attention_layers,
            "resampler": f"{config.resampler_depth} layers, {config.num_latents} latents",
            "image_token_id": config.image_token_id,
        },
        notes=tuple(notes),
    )
