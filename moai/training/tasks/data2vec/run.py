"""``task: data2vec``: from a recipe to a vision tower that learned from images alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from moai.checkpoints.io.contents import hash_checkpoint
from moai.data.image_samples import ImageDataset
from moai.models.backbones import load_vision_backbone
from moai.settings import load_settings, to_plain

from ...model_building import find_start
from ...processes import seed_generators
from ...trainer import TrainingResult
from ..starts import run_image_task
from .encoders import VisionEncoder
from .objective import Data2VecStudent
from .settings import Data2VecModelSettings, Data2VecSettings
from .task import Data2VecTask

__all__ = ["run_data2vec"]

_HEAD = 5  # stream of random numbers


def run_data2vec(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> TrainingResult:
    """Train a vision tower, or go on from the last checkpoint.

    Args:
        source: A recipe: YAML file, mapping or settings.
        overrides: ``key=value`` words laid over it.

    Returns:
        Where the result lies: the tower with its image processor.

    Raises:
        ValueError: The recipe, the data or a checkpoint is not as expected.
    """
    settings = load_settings(Data2VecSettings, source, overrides)
    chosen = settings.model
    dataset = ImageDataset(settings.data, has_captions=False)
    validation = None if settings.validation is None else ImageDataset(settings.validation, has_captions=False)
    start_name = None if chosen.path is None else find_start(chosen.path)
    files = {} if start_name is None else hash_checkpoint(start_name)
    origin = {"model": to_plain(chosen), "seed": settings.seed, "files": files}

    def write_start(folder: Path) -> None:
        tower = _build_tower(chosen)
        tower.save_pretrained(folder)
        _build_image_processor(tower, start_name).save_pretrained(folder)

    def build(base: Path, start: Mapping[str, str]) -> Data2VecTask:
        seed_generators(settings.seed, _HEAD)
        student = Data2VecStudent(VisionEncoder(_load_tower(base)))
        processor = CLIPImageProcessorPil.from_pretrained(base)
        return Data2VecTask(settings, student, processor, dataset, validation, start)

    def write(base: Path, folder: Path, state: dict[str, torch.Tensor]) -> None:
        tower, prefix = _load_tower(base), "encoder.model."
        own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        missing = tower.load_state_dict(own, strict=False).missing_keys
        assert not set(missing) & {name for name, _ in tower.named_parameters()}, missing
        tower.to(getattr(torch, settings.saving.dtype or "float32")).save_pretrained(folder)
        CLIPImageProcessorPil.from_pretrained(base).save_pretrained(folder)

    return run_image_task(settings, source, overrides, origin, write_start, build, write)


def _build_tower(chosen: Data2VecModelSettings) -> PreTrainedModel:
    if chosen.path is None:
        fields = dict(chosen.fields)
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        return _without_pooler(AutoModel.from_config(config))
    backbone = load_vision_backbone(find_start(chosen.path))
    tower = _without_pooler(AutoModel.from_config(backbone.config))
    missing = tower.load_state_dict(backbone.tensors, strict=False).missing_keys
    assert not missing, missing
    return tower.float()


def _load_tower(folder: Path) -> PreTrainedModel:
    return _without_pooler(AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True))


def _without_pooler(tower: PreTrainedModel) -> PreTrainedModel:
    """No token of an image is read by it, and what has no gradient is not trained."""
    if getattr(tower, "pooler", None) is not None:
        tower.pooler = None
    return tower


def _build_image_processor(tower: PreTrainedModel, start: str | None) -> CLIPImageProcessorPil:
    """CLIP's without cropping, with mean and standard deviation of where the tower comes from."""
    side, means = tower.config.image_size, {}
    if start is not None:
        try:
            found = AutoImageProcessor.from_pretrained(start)
            means = {name: getattr(found, name) for name in ("image_mean", "image_std")}
        except (OSError, ValueError):
            pass  # a tower alone: CLIP's
    size = {"height": side, "width": side}
    return CLIPImageProcessorPil(size=size, resample=Image.Resampling.BICUBIC, do_center_crop=False, **means)
