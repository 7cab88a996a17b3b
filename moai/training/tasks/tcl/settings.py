"""Settings of a run of TCL."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field, StrictInt

from moai.settings import Positive, Share, settings

from ..augmentation import AugmentationSettings
from ..image_run import ImageRunSettings

__all__ = ["TCLModelSettings", "TCLSettings"]


@settings
class TCLModelSettings:
    """The model that training starts from: a TCL, or two encoders.

    Attributes:
        path: Folder or hub name of a TCL to go on with; the other fields stay out then.
        vision: Image encoder: folder or hub name of a tower, or fields of a new one's configuration with its
            ``model_type`` (``vit``, ``clip_vision_model``).
        text: Text encoder: folder or hub name of a BERT, or fields of a new one's ``BertConfig``.
        num_text_layers: Of its layers those that read text alone.
        projection_dim: Width of the common space.
        tokenizer: Folder or hub name; None = that beside ``text``, or for a new BERT one that is learned from the
            captions.
        vocab_size: Most word pieces of a learned tokenizer.
        max_words: Words of a caption that are read.
        max_text_length: Tokens of a caption that are read.
    """

    path: str | None = None
    vision: str | dict[str, Any] | None = None
    text: str | dict[str, Any] | None = None
    num_text_layers: Positive = 6
    projection_dim: Positive = 256
    tokenizer: str | None = None
    vocab_size: Positive = 4096
    max_words: Positive = 30
    max_text_length: Annotated[StrictInt, Field(ge=3)] = 25

    def __post_init__(self) -> None:
        has_encoders = self.vision is not None and self.text is not None
        if (self.path is not None) == has_encoders or (self.path is not None and (self.vision or self.text)):
            raise ValueError(
                "expected `model.path`, or both `model.vision` and `model.text`; got "
                f"path={self.path!r}, vision={self.vision!r}, text={self.text!r}."
            )


@settings(kw_only=True)
class TCLSettings(ImageRunSettings):
    """One run of TCL; see :class:`.ImageRunSettings` for the rest.

    Attributes:
        task: "tcl".
        model: What training starts from.
        augmentation: How the two views of an image differ.
        queue_size: Features of each modality that are compared with beside the batch; a multiple of
            ``optimization.batch_size``.
        momentum: Share that the momentum copy keeps of itself at every step.
        alpha: Share of the momentum model in the targets; it rises from 0 over the first epoch, as in the original.
        mask_probability: Share of words that are hidden.
    """

    task: Literal["tcl"] = "tcl"
    model: TCLModelSettings
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    queue_size: Positive = 65536
    momentum: Share = 0.995
    alpha: Share = 0.4
    mask_probability: Share = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = self.optimization
        if self.queue_size % chosen.batch_size:
            raise ValueError(
                "`queue_size` must be a multiple of `optimization.batch_size`, got "
                f"{self.queue_size} and {chosen.batch_size}."
            )
        if chosen.micro_batch_size < 2:
            raise ValueError(
                "`optimization.micro_batch_size` must be at least 2: wrong partners come from the same micro-batch."
            )
