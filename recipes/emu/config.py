"""The recipe of the tiny Emu, read from YAML."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Any

from pydantic import StrictInt

from moai.settings import Number, load_settings, settings

__all__ = ["AutoencoderSettings", "SheetSettings", "TinyEmuConfig", "WorldSettings", "load_tiny_config"]


@settings
class WorldSettings:
    """What captions may say, and how many images there are.

    Attributes:
        things: Names of objects that can be painted.
        colours: Colours that they are painted in.
        grounds: What they stand on.
        held_out: Every so many-th caption is never learned, to see whether words are put together anew.
        num_images: Images to learn from; each is a document twice, before and after its caption.
        image_size: In pixels.
    """

    things: tuple[str, ...]
    colours: tuple[str, ...]
    grounds: tuple[str, ...]
    held_out: StrictInt
    num_images: StrictInt
    image_size: StrictInt = 64


@settings
class AutoencoderSettings:
    """The autoencoder, trained on crops.

    Attributes:
        fields: Of diffusers' ``AutoencoderKL``.
        num_steps: Optimizer steps.
        batch_size: Crops per step.
        crop: Height and width of a crop.
        learning_rate: Peak; falls to zero in a line.
        kl_weight: Of the divergence from a normal distribution.
    """

    fields: dict[str, Any]
    num_steps: StrictInt
    batch_size: StrictInt = 16
    crop: StrictInt = 32
    learning_rate: Number = 1e-3
    kl_weight: Number = 1e-6


@settings
class SheetSettings:
    """What is drawn and measured.

    Attributes:
        options: Of drawing, see :meth:`moai.Pipeline.draw`.
        image_size: Side to which drawings are enlarged for the detector.
        num_shuffles: Shuffles of the captions.
    """

    options: dict[str, Any] = field(default_factory=dict)
    image_size: StrictInt = 448
    num_shuffles: StrictInt = 1000


@settings
class TinyEmuConfig:
    """Settings of the recipe; each step is left out where its result is there.

    Attributes:
        world: What there is.
        decoder: Fields of the new decoder's ``LlamaConfig``.
        sequence: Recipe of :class:`moai.models.emu.settings_emu.EmuTrainSettings`; paths are filled in.
        autoencoder: How the autoencoder is trained.
        drawing: Recipe of :class:`moai.training.tasks.emu_decoder.settings.EmuDecoderSettings`; paths are filled in.
        sheet: What is drawn and measured.
        seed: Of new weights.
    """

    world: WorldSettings
    decoder: dict[str, Any]
    sequence: dict[str, Any]
    autoencoder: AutoencoderSettings
    drawing: dict[str, Any]
    sheet: SheetSettings
    seed: StrictInt = 0


def load_tiny_config(path: str | Path) -> TinyEmuConfig:
    """Read a recipe.

    Raises:
        ValueError: A field is unknown, missing or wrong.
    """
    return load_settings(TinyEmuConfig, path)
