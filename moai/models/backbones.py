"""Pretrained parts as plain tensors with their configuration; vision towers."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from ..checkpoints.io.tensor_folder import list_names

__all__ = ["Backbone", "check_loaded", "load_vision_backbone", "own_tensors"]


@dataclass(frozen=True)
class Backbone:
    """A pretrained part.

    Attributes:
        config: Its configuration, a copy.
        tensors: Its tensors by their names inside the part, each owned by nobody else.
        head: ``(vocab_size, D)`` output head of a language model; None where it is tied, or for a tower.
    """

    config: PreTrainedConfig
    tensors: dict[str, torch.Tensor]
    head: torch.Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the part's first floating tensor."""
        return next(tensor.dtype for tensor in self.tensors.values() if tensor.is_floating_point())


def load_vision_backbone(vision: Any) -> Backbone:
    """Load a vision tower.

    Args:
        vision: Folder or hub name of a CLIP, SigLIP, DINOv2, ... model, with or without its text half; or a
            loaded model, which is copied.

    Returns:
        The tower alone.

    Raises:
        ValueError: If the model has no vision tower, or weights are missing.
    """
    if not isinstance(vision, PreTrainedModel):
        vision = _load_tower(str(vision))
        tower, is_shared = _find_tower(vision), False
    else:
        tower, is_shared = _find_tower(vision), True
    return Backbone(deepcopy(tower.config), own_tensors(tower, is_shared))


def _load_tower(name: str) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(name)
    vision_config = getattr(config, "vision_config", None)
    is_theirs = type(config).__module__.startswith("transformers.")  # and its tower loads by the names it has inside
    if vision_config is not None and is_theirs and type(vision_config) in AutoModel._model_mapping:
        # The vision half alone: a whole CLIP's text half is not even read.
        loader, settings = AutoModel._model_mapping[type(vision_config)], {"config": vision_config}
    else:
        loader, settings = AutoModel, {}
    model, info = loader.from_pretrained(name, **settings, dtype="auto", use_safetensors=True, output_loading_info=True)
    # A pooler is read by nobody here, and many towers come without theirs: those of TCL and DINO, ...
    missing = {key for key in info["missing_keys"] if not key.startswith("pooler.")}
    check_loaded(name, model, {**info, "missing_keys": missing})
    return model


def _find_tower(model: PreTrainedModel) -> PreTrainedModel:
    if getattr(model.config, "vision_config", None) is None:
        return model
    for name in ("vision_model", "vision_tower"):
        tower = getattr(model, name, None)
        if isinstance(tower, PreTrainedModel):
            return tower
    raise ValueError(
        f"Expected a vision model, got {type(model).__name__} without a `vision_model`. Pass its vision tower itself."
    )


def check_loaded(name: str, model: PreTrainedModel, info: Any) -> None:
    """Raise where transformers only warns: it initialises missing weights at random."""
    missing = sorted(info["missing_keys"])
    if missing or info["mismatched_keys"]:
        wrong = missing or sorted(str(entry) for entry in info["mismatched_keys"])
        raise ValueError(
            f"{name} lacks {len(wrong)} weight(s) of a {type(model).__name__}: {list_names(wrong)}. Use a complete "
            "checkpoint of that model."
        )


def own_tensors(model: PreTrainedModel, is_shared: bool) -> dict[str, torch.Tensor]:
    """A part's tensors by name; copies where the model is another's too."""
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    return {name: tensor.clone() for name, tensor in tensors.items()} if is_shared else tensors
