"""A new MoAI, model and processor, from two pretrained backbones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .backbone_processor import build_processor_from_backbones
from .modeling_moai import MoAIForConditionalGeneration
from .processing_moai import MoAIProcessor


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


__all__ = ["from_backbones"]
