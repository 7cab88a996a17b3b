"""Published PSGTR checkpoints (OpenPSG) -> a folder for the scene-graph verbalizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from verbalizers.core.durable_files import atomic_folder

from ..io.tensor_folder import TensorFolder
from .driver import ConversionKind
from .report import ConversionReport


def _recognises(names: Mapping[str, Any]) -> bool:
    from verbalizers.psgtr.conversion_psgtr import looks_like_psgtr

    return looks_like_psgtr(names)


def convert_psgtr(
    weights: TensorFolder,
    source: Path,
    output: Path,
    *,
    dtype: torch.dtype | None = None,
    force: bool = False,
    class_names: Sequence[str] | None = None,
    predicate_names: Sequence[str] | None = None,
) -> ConversionReport:
    """Convert a published PSGTR checkpoint.

    Args:
        weights: Of ``epoch_60.pth`` or the like.
        source: That file.
        output: Folder to create: ``build_verbalizer("scene_graph", checkpoint=output)``.
        dtype: Of the weights written; None keeps float32.
        force: Replace an existing output.
        class_names: None = COCO's 133 panoptic names where there are 133 classes, else numbers.
        predicate_names: None = PSG's 56 where there are 56 relations, else numbers.

    Returns:
        An account of what was read and written.

    Raises:
        ValueError: If the file cannot be opened safely, or its keys do not fit.
    """
    from verbalizers.psgtr import PSGTRImageProcessor
    from verbalizers.psgtr.conversion_psgtr import convert_psgtr_state_dict

    state_dict = dict(weights)
    model = convert_psgtr_state_dict(state_dict, str(source), class_names, predicate_names)
    if dtype is not None:
        model = model.to(dtype)
    with atomic_folder(output, force=force) as folder:
        model.save_pretrained(folder)
        PSGTRImageProcessor().save_pretrained(folder)
        files = {path.name: path.stat().st_size for path in sorted(folder.glob("*.safetensors"))}
    families: Counter[str] = Counter()
    for name, tensor in model.named_parameters():
        families[name.split(".")[0]] += tensor.numel()
    return ConversionReport(
        kind=KIND.name,
        source=source,
        output=output,
        num_source_tensors=len(state_dict),
        num_tensors=len(model.state_dict()),
        num_parameters=sum(families.values()),
        num_bytes=sum(files.values()),
        dtype=str(model.dtype).removeprefix("torch."),
        families=dict(families),
        files=tuple(files),
        sizes=_describe(model.config),
        notes=(f'use it with build_verbalizer("scene_graph", checkpoint="{output}")',),
    )


def _describe(config: Any) -> dict[str, Any]:
    return {
        "classes": len(config.id2label),
        "relations": len(config.predicate_names),
        "queries": config.num_queries,
        "transformer": f"{config.encoder_layers} + {config.decoder_layers} layers of {config.d_model}",
    }


KIND = ConversionKind("psgtr", _recognises, convert_psgtr)
