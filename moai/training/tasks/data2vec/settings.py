"""Settings of a run of data2vec on images."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field

from moai.settings import Count, Number, Positive, Share, settings

from ..augmentation import AugmentationSettings
from ..image_run import ImageRunSettings
from .encoders import LayerResult
from .losses import Normalization

__all__ = ["Data2VecModelSettings", "Data2VecSettings", "MaskSettings", "TargetSettings", "TeacherSettings"]


@settings
class Data2VecModelSettings:
    """The image encoder that training starts from.

    Attributes:
        path: Folder or hub name of a tower: CLIP's, a ViT, Data2VecVision, with or without its text half.
        fields: Instead of it: fields of a new one's configuration with its ``model_type`` (``clip_vision_model``,
            ``vit``, ``data2vec-vision``).
    """

    path: str | None = None
    fields: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.fields is None):
            raise ValueError("expected one of `model.path` and `model.fields`. Name a tower, or describe a new one.")
        if self.fields is not None and "model_type" not in self.fields:
            raise ValueError("expected `model_type` in `model.fields`, for example clip_vision_model.")


@settings
class MaskSettings:
    """What the student does not see.

    Attributes:
        share: Of the patches, at most; the original's 120 of 196 on average 119.5.
        min_block: Patches of the smallest rectangle; the original's 16 are of 14 x 14 patches.
        max_block: Of the largest; None = as many as are covered.
    """

    share: Annotated[Number, Field(gt=0, lt=1)] = 0.6123
    min_block: Positive = 16
    max_block: Positive | None = None


@settings
class TargetSettings:
    """What the student has to say.

    Attributes:
        num_layers: Uppermost layers of the teacher that are averaged; None = half of them, as in the original.
        layer_result: ``end`` = a layer's output; ``fc`` = its feed-forward part's.
        norm_of_layers: Of each layer: ``layer``, ``instance`` or ``none``.
        norm_of_mean: Of their mean.
        beta: Of smooth L1; 0 = squared error.
    """

    num_layers: Positive | None = None
    layer_result: LayerResult = "end"
    norm_of_layers: Normalization = "layer"
    norm_of_mean: Normalization = "layer"
    beta: Annotated[Number, Field(ge=0)] = 2.0


@settings
class TeacherSettings:
    """How slowly the teacher follows: its share of itself rises in a line.

    Attributes:
        start: At the first step.
        end: After ``num_steps``.
        num_steps: 0 = ``end`` from the first step on, as in the original.
    """

    start: Share = 0.999
    end: Share = 0.9998
    num_steps: Count = 0


@settings(kw_only=True)
class Data2VecSettings(ImageRunSettings):
    """One run of data2vec, which reads no captions; see :class:`.ImageRunSettings` for the rest.

    Attributes:
        task: "data2vec".
        model: What training starts from.
        augmentation: How a view of an image differs from it.
        mask: What is not seen.
        targets: What is to be said.
        teacher: How slowly it follows.
    """

    task: Literal["data2vec"] = "data2vec"
    model: Data2VecModelSettings
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    mask: MaskSettings = field(default_factory=MaskSettings)
    targets: TargetSettings = field(default_factory=TargetSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
