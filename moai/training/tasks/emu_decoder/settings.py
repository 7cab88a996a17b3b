"""Settings of a run of Emu's visual decoder."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field

from moai.settings import Number, settings

from ..image_run import ImageRunSettings

__all__ = ["EmuDecoderModelSettings", "EmuDecoderSettings"]


@settings
class EmuDecoderModelSettings:
    """What is trained, and what it is conditioned by.

    Attributes:
        path: The Emu, which rests; the output of an earlier stage, a whole model.
        decoder: Folder with ``unet``, ``vae`` and ``scheduler``: Stable Diffusion's, whose cross-attention starts anew
            where it is of another width; None = that beside the Emu, where it has one.
        unet: Instead of its U-Net: fields of a new one's ``UNet2DConditionModel``.
        vae: Instead of its autoencoder, which rests: folder of an ``AutoencoderKL``.
        scheduler: Fields of ``PNDMScheduler`` that differ from Stable Diffusion's.
    """

    path: str
    decoder: str | None = None
    unet: dict[str, Any] | None = None
    vae: str | None = None
    scheduler: dict[str, Any] = field(default_factory=dict)


@settings(kw_only=True)
class EmuDecoderSettings(ImageRunSettings):
    """One run of Emu's visual decoder; see :class:`.ImageRunSettings` for the rest.

    Attributes:
        task: "emu_decoder".
        model: What is trained.
        condition: What an image is learned from: ``caption`` = the embeddings that the Emu predicts after its caption,
            as when it draws; ``image`` = those of the image itself.
        drop_share: How often it is learned from the empty prompt's embeddings, which guidance leads away from.
    """

    task: Literal["emu_decoder"] = "emu_decoder"
    model: EmuDecoderModelSettings
    condition: Literal["caption", "image"] = "caption"
    drop_share: Annotated[Number, Field(ge=0, le=1)] = 0.1
