"""``task: emu_decoder``: from a recipe to an Emu that draws."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from moai.checkpoints.io.adapter_files import is_adapter_folder
from moai.checkpoints.io.contents import hash_checkpoint
from moai.data.image_samples import ImageDataset
from moai.import_utils import require
from moai.models.emu.answering_emu import VISUAL_DECODER_FOLDER, EmuAnswering
from moai.models.emu.visual_decoder import PARTS, VisualDecoder
from moai.settings import load_settings, to_plain

from ...model_building import find_start, show_weights
from ...trainer import TrainingResult
from ..starts import run_image_task
from .settings import EmuDecoderModelSettings, EmuDecoderSettings
from .task import EmuDecoderTask

__all__ = ["run_emu_decoder"]

#: Stable Diffusion v1's.
_SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "steps_offset": 1,
}


def run_emu_decoder(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> TrainingResult:
    """Train the visual decoder of an Emu, or go on from the last checkpoint.

    Args:
        source: A recipe: YAML file, mapping or settings.
        overrides: ``key=value`` words laid over it.

    Returns:
        Where the result lies: the Emu with its visual decoder.

    Raises:
        ValueError: The recipe, the data, the model or a checkpoint is not as expected.
        ImportError: diffusers is not installed.
    """
    require("diffusers", purpose="A visual decoder")
    settings = load_settings(EmuDecoderSettings, source, overrides)
    chosen = settings.model
    emu_folder = _find_emu(chosen.path)
    decoder_folder = _find_decoder(chosen, emu_folder)
    dataset = ImageDataset(settings.data, has_captions=settings.condition == "caption")
    validation = None
    if settings.validation is not None:
        validation = ImageDataset(settings.validation, has_captions=settings.condition == "caption")
    emu_files = hash_checkpoint(str(emu_folder), show_weights)
    files = {} if decoder_folder is None else _hash_parts(decoder_folder)
    if chosen.vae is not None:
        files |= {f"vae/{name}": value for name, value in hash_checkpoint(chosen.vae).items()}
    origin = {"model": to_plain(chosen), "seed": settings.seed, "emu": emu_files, "files": files}

    def write_start(folder: Path) -> None:
        width = EmuAnswering.model_class.config_class.from_pretrained(emu_folder).text_config.hidden_size
        _build_decoder(chosen, decoder_folder, width).save_pretrained(folder)

    def build(base: Path, start: Mapping[str, str]) -> EmuDecoderTask:
        answering = EmuAnswering.load(str(emu_folder), dtype=torch.float32)
        started = {**start, **_hash_parts(base), **{f"emu/{name}": value for name, value in emu_files.items()}}
        decoder = VisualDecoder.from_pretrained(base)
        return EmuDecoderTask(settings, decoder, answering.model, answering.processor, dataset, validation, started)

    def write(base: Path, folder: Path, state: dict[str, torch.Tensor]) -> None:
        for file in emu_folder.iterdir():
            if file.is_file():
                shutil.copy2(file, folder / file.name)
        decoder = VisualDecoder.from_pretrained(base)
        decoder.unet.load_state_dict(state)
        decoder.to(getattr(torch, settings.saving.dtype or "float32")).save_pretrained(folder / VISUAL_DECODER_FOLDER)

    return run_image_task(settings, source, overrides, origin, write_start, build, write)


def _find_emu(path: str) -> Path:
    folder = Path(find_start(path))
    if not folder.is_dir():
        raise ValueError(f"expected the folder of an Emu in `model.path`, got {path}. Download it first.")
    if is_adapter_folder(folder):
        raise ValueError(
            f"expected a whole Emu in `model.path`, got the adapter {folder}. Merge it first (saving.output=merged)."
        )
    return folder


def _find_decoder(chosen: EmuDecoderModelSettings, emu_folder: Path) -> Path | None:
    """Folder of the visual decoder that training starts from; None = all of its parts are named."""
    if chosen.unet is not None and chosen.vae is not None:
        return None
    folder = emu_folder / VISUAL_DECODER_FOLDER if chosen.decoder is None else Path(chosen.decoder).expanduser()
    if not (folder / "unet").is_dir() and not (folder / "vae").is_dir():
        raise ValueError(
            f"expected a visual decoder in {folder} (unet/, vae/, scheduler/), got none. Name Stable Diffusion's in "
            "`model.decoder`, or a new U-Net in `model.unet` with an autoencoder in `model.vae`."
        )
    return folder


def _hash_parts(folder: Path, names: Iterable[str] = PARTS) -> dict[str, str]:
    """Hashes of the files of a visual decoder's parts."""
    parts = {name: hash_checkpoint(folder / name) for name in names}
    return {f"{name}/{file}": value for name, found in parts.items() for file, value in found.items()}


def _build_decoder(chosen: EmuDecoderModelSettings, folder: Path | None, width: int) -> VisualDecoder:
    """The visual decoder before the first step, in float32."""
    import diffusers

    if chosen.unet is None:
        old = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True)
        unet = diffusers.UNet2DConditionModel.from_config({**old.config, "cross_attention_dim": width})
        # Keys and values of cross-attention are the only weights that the condition's width decides.
        new, state = unet.state_dict(), old.state_dict()
        unet.load_state_dict(
            {name: state[name] if state[name].shape == value.shape else value for name, value in new.items()}
        )
    else:
        channels = {}
        if chosen.vae is not None:
            latent = diffusers.AutoencoderKL.load_config(chosen.vae)["latent_channels"]
            channels = {"in_channels": latent, "out_channels": latent}
        unet = diffusers.UNet2DConditionModel(**channels | chosen.unet | {"cross_attention_dim": width})
    place = folder / "vae" if chosen.vae is None else Path(chosen.vae).expanduser()
    vae = diffusers.AutoencoderKL.from_pretrained(place, use_safetensors=True)
    if folder is not None and (folder / "scheduler").is_dir():
        scheduler = diffusers.PNDMScheduler.from_pretrained(folder / "scheduler", **chosen.scheduler)
    else:
        scheduler = diffusers.PNDMScheduler(**_SCHEDULER | chosen.scheduler)
    wanted, got = vae.config.latent_channels, unet.config.in_channels
    if wanted != got:
        raise ValueError(
            f"expected a U-Net for the autoencoder's {wanted} channels, got one for {got}. Change `model.unet`."
        )
    return VisualDecoder(unet.float(), vae.float(), scheduler)
