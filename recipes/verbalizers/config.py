"""The recipe of the small verbalizers, read from YAML."""

from __future__ import annotations

from pathlib import Path

from pydantic import StrictInt

from moai.settings import load_settings, settings

from .mask2former import Mask2FormerSettings
from .owlv2 import Owlv2Settings
from .predcls import PredClsSettings
from .psgtr import PSGTRSettings
from .scenes import SceneSettings

__all__ = ["VerbalizersConfig", "load_verbalizers_config"]


@settings
class VerbalizersConfig:
    """Settings of the small verbalizers' recipe; what is None is left out.

    Attributes:
        shards: The scenes they learn from.
        mask2former: Panoptic segmentation.
        psgtr: Relations; starts from the segmenter's backbone.
        owlv2: Open-vocabulary detection.
        predcls: Relations between what the others find.
        start: Folder of finished verbalizers (``mask2former-nano`` and so on) whose weights training starts from; None
            = the backbone's ImageNet weights, and nothing.
        seed: Of the initial weights.

    Raises:
        ValueError: PSGTR is to learn from more shards than there are, or without a segmenter.
    """

    shards: SceneSettings
    mask2former: Mask2FormerSettings | None = None
    psgtr: PSGTRSettings | None = None
    owlv2: Owlv2Settings | None = None
    predcls: PredClsSettings | None = None
    start: str | None = None
    seed: StrictInt = 0

    def __post_init__(self) -> None:
        if self.psgtr is not None and self.mask2former is None:
            raise ValueError("`psgtr` reads the segmenter's backbone: expected `mask2former` too, got none.")
        if self.psgtr is not None and (self.psgtr.num_shards or 0) > self.shards.num_shards:
            raise ValueError(
                f"`psgtr.num_shards` must be {self.shards.num_shards} at most, as many as there are (`shards`), got "
                f"{self.psgtr.num_shards}."
            )


def load_verbalizers_config(path: str | Path) -> VerbalizersConfig:
    """Read a recipe.

    Raises:
        ValueError: A field is unknown, missing or wrong.
    """
    return load_settings(VerbalizersConfig, path)
