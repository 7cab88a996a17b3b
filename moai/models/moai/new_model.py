"""A new MoAI, model and processor, from two pretrained backbones."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from ..answering import load_whole
from .backbone_processor import build_processor_from_backbones
from .configuration_moai import MoAIConfig
from .modeling_moai import MoAIForConditionalGeneration
from .processing_moai import MoAIProcessor

_LATENTS = "model.compressor.latents.weight"


def from_backbones(
    vision: str | Path, text: str | Path, *, gguf_file: str | None = None, **fields: Any
) -> tuple[MoAIForConditionalGeneration, MoAIProcessor]:
    """Build a new MoAI around a pretrained vision tower and a pretrained language model.

    Args:
        vision: Folder or hub name of a vision tower (CLIP, SigLIP, DINOv2, ...), with its preprocessor_config.json.
        text: Folder, hub name or .gguf file of a causal decoder (Llama, SmolLM2, InternLM2, Mistral, Qwen2, Qwen3)
            with its tokenizer.
        gguf_file: GGUF file inside ``text``.
        **fields: ``compressor``, ``mixer``, ``dtype``, ``image_token_id`` and the other fields of :class:`MoAIConfig`,
            see :func:`moai.models.moai.backbones.build_from_backbones`.

    Returns:
        The model in evaluation mode, its backbones' weights untouched and all else new; and the processor that fits it.
        Saved into one folder they are a checkpoint.

    Raises:
        ValueError: A backbone is incomplete or of an unsupported kind, has no tokenizer, or a field does not fit.
    """
    model = MoAIForConditionalGeneration.from_backbones(vision, text, gguf_file=gguf_file, **fields)
    return model, build_processor_from_backbones(vision, text, model.config, gguf_file=gguf_file)


def renew(
    path: str | Path,
    sizes: Mapping[str, Mapping[str, Any]],
    fresh_parts: Collection[str] = (),
    keeps_fitting: bool = False,
    seed: int = 0,
) -> MoAIForConditionalGeneration:
    """A checkpoint with some parts reinitialized, perhaps in other sizes.

    Args:
        path: The checkpoint.
        sizes: Fields of ``compressor`` and ``mixer`` that are laid over the checkpoint's.
        fresh_parts: Parts to start anew, of ``trainable_parts``; ``mixers`` includes the gates.
        keeps_fitting: A part of another size keeps the tensors whose shapes stay the same, and evenly chosen ones of
            its latents, some twice where there are more; else it starts anew.
        seed: Of the new numbers.
    """
    old = load_whole(MoAIForConditionalGeneration, path, "auto")
    fields, fresh, resized = old.config.to_dict(), set(fresh_parts), set()
    for name, part in (("compressor", "compressor"), ("mixer", "mixers")):
        if sizes.get(name):
            fields[name] = {**fields[name], **sizes[name]}
            (resized if keeps_fitting else fresh).add(part)
    for parts in (fresh, resized):
        parts |= {"gates"} if "mixers" in parts else set()
    torch.manual_seed(seed)
    model = MoAIForConditionalGeneration(MoAIConfig.from_dict(fields)).to(old.dtype)
    new, kept = model.state_dict(), {}
    for name, value in old.state_dict().items():
        if name == _LATENTS and "compressor" in resized and len(new[name]) != len(value):
            value = value[torch.linspace(0, len(value) - 1, len(new[name])).round().long()]
        if _part_of(name) not in fresh and (_part_of(name) not in resized or _fits(value, new.get(name))):
            kept[name] = value
    missing = model.load_state_dict(kept, strict=False).missing_keys
    assert all(_part_of(name) in fresh | resized for name in missing), missing
    model.generation_config = old.generation_config
    return model


def _part_of(name: str) -> str:
    parts = MoAIForConditionalGeneration.trainable_parts.items()
    return next((part for part, pattern in parts if re.search(pattern, name)), "decoder")


def _fits(value: torch.Tensor, other: torch.Tensor | None) -> bool:
    return other is not None and value.shape == other.shape


__all__ = ["from_backbones", "renew"]
