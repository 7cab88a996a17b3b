"""Published PSGTR checkpoints (OpenPSG) -> a folder for the scene-graph verbalizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..io.tensor_folder import TensorFolder
from .driver import ConversionKind, Converted


def _recognises(names: Mapping[str, Any]) -> bool:
    from verbalizers.psgtr.conversion_psgtr import looks_like_psgtr

    return looks_like_psgtr(names)


def _convert(
    weights: TensorFolder,
    source: Path,
    dtype: torch.dtype | None,
    *,
    class_names: Sequence[str] | None = None,
    predicate_names: Sequence[str] | None = None,
) -> Converted:
    """A PSGTR, for ``build_verbalizer("scene_graph", checkpoint=...)``; see :class:`.ConversionKind`.

    ``class_names``: None = COCO's 133 panoptic names where there are 133 classes, else numbers; ``predicate_names``:
    None = PSG's 56 where there are 56 relations, else numbers.
    """
    from verbalizers.psgtr import PSGTRImageProcessor
    from verbalizers.psgtr.conversion_psgtr import convert_psgtr_state_dict

    model = convert_psgtr_state_dict(dict(weights), str(source), class_names, predicate_names)
    model.config.architectures = [type(model).__name__]
    return Converted(
        name="PSGTR",
        config=model.config,
        tensors=model.state_dict().items(),
        licences=(),
        notes=['use it with build_verbalizer("scene_graph", checkpoint=OUTPUT)'],
        sizes=_describe(model.config),
        stored=dtype or model.dtype,
        dtype=dtype,
        saved=[PSGTRImageProcessor()],
        family=lambda name: name.split(".")[0],
    )


def _describe(config: Any) -> dict[str, Any]:
    return {
        "classes": len(config.id2label),
        "relations": len(config.predicate_names),
        "queries": config.num_queries,
        "transformer": f"{config.encoder_layers} + {config.decoder_layers} layers of {config.d_model}",
    }


KIND = ConversionKind("psgtr", _recognises, _convert)
