"""The recipe of the small verbalizers, read from YAML."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from .image_shards import PictureShardSettings
from .loop import LoopSettings
from .mask2former import Mask2FormerSettings
from .owlv2 import Owlv2Settings
from .psgtr import PSGTRSettings

__all__ = ["VerbalizersConfig", "load_verbalizers_config"]


@dataclass(frozen=True)
class VerbalizersConfig:
    """Everything that decides what the small verbalizers become.

    Attributes:
        shards: The scenes they learn from.
        mask2former: Panoptic segmentation.
        psgtr: Relations; starts from the segmenter's backbone.
        owlv2: Open-vocabulary detection.
        seed: Of the initial weights.
    """

    shards: PictureShardSettings
    mask2former: Mask2FormerSettings
    psgtr: PSGTRSettings
    owlv2: Owlv2Settings
    seed: int = 0


_PARTS = {"shards": PictureShardSettings, "mask2former": Mask2FormerSettings, "psgtr": PSGTRSettings}
_PARTS |= {"owlv2": Owlv2Settings, "loop": LoopSettings, "triplets": LoopSettings, "masks": LoopSettings}


def _build(kind: type, values: Any, where: str) -> Any:
    known = {item.name for item in fields(kind)}
    if not isinstance(values, dict) or set(values) - known:
        got = sorted(set(values) - known) if isinstance(values, dict) else values
        raise ValueError(f"`{where}` must have fields among {sorted(known)}, got {got}. Correct the spelling.")
    filled = {n: _build(_PARTS[n], v, f"{where}.{n}") if n in _PARTS else _as_tuple(v) for n, v in values.items()}
    try:
        return kind(**filled)
    except TypeError as error:
        raise ValueError(f"`{where}` is incomplete: {error}. Add the field.") from error


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def load_verbalizers_config(path: str | Path) -> VerbalizersConfig:
    """Read a recipe.

    Raises:
        ValueError: A field is unknown or missing.
    """
    values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    return _build(VerbalizersConfig, values, Path(path).name)
