"""A new MoAI from a pretrained vision tower and a pretrained language model.

The backbones' numbers are taken as they are; projector, compressor and mixers are new and start as
``MoAIPreTrainedModel._init_weights`` says.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..backbones import Backbone, build_from_parts, load_vision_backbone, resize_rows
from .backbone_loading import load_text_backbone
from .backbone_processor import load_backbone_tokenizer
from .configuration_moai import MoAIConfig
from .partial_lora import TARGET_LINEARS
from .tokenization_internlm2 import IMAGE_TOKEN

_WRAPPED_LINEAR = re.compile(rf"(layers\.\d+\.\w+\.(?:{'|'.join(TARGET_LINEARS)}))\.(weight|bias)")
NEW_PARTS = ("model.multi_modal_projector.", "model.compressor.", "model.mixers.", ".update.lora_")
#: Towers that put a class token in front of the patches, which is dropped.
CLASS_TOKEN_TOWERS = ("clip_vision_model", "dinov2", "vit", "data2vec-vision")
CLASS_TOKEN_TOWERS += ("chinese_clip_vision_model", "metaclip_2_vision_model")


def build_from_backbones(
    cls: type[PreTrainedModel],
    vision: Any,
    text: Any,
    *,
    compressor: dict[str, Any] | None = None,
    mixer: dict[str, Any] | None = None,
    image_token_id: int | None = None,
    dtype: torch.dtype | str | None = None,
    gguf_file: str | None = None,
    **config_fields: Any,
) -> PreTrainedModel:
    """Build a MoAI around two pretrained backbones.

    Args:
        cls: ``MoAIForConditionalGeneration`` or a subclass.
        vision: Folder, hub name or loaded model of a vision tower (CLIP, SigLIP, DINOv2, ...), see
            :func:`moai.models.backbones.load_vision_backbone`.
        text: Folder, hub name, .gguf file or loaded model of a causal decoder (Llama, SmolLM2, InternLM2, Mistral,
            Qwen2, Qwen3), see :func:`moai.models.moai.backbone_loading.load_text_backbone`. Loaded models are copied.
        compressor: Fields of :class:`compressor.CompressorConfig`.
        mixer: Fields of :class:`mixer.MixerConfig`.
        image_token_id: Id of ``<image>``. None takes the id that the language model's tokenizer has or will give it
            where the vocabulary has an unused row there (Qwen2 pads its vocabulary); otherwise one row is appended.
        dtype: Dtype of everything. None keeps the backbones' common dtype, or the one that holds both without loss.
        gguf_file: GGUF file inside ``text``.
        **config_fields: Other fields of :class:`MoAIConfig`.

    Returns:
        The model in evaluation mode. The backbones' tensors equal the originals bit by bit.

    Raises:
        ValueError: If a backbone is incomplete or of an unsupported kind, or a field does not fit.
    """
    tower, decoder = load_vision_backbone(vision), load_text_backbone(text, gguf_file)
    if image_token_id is None:
        image_token_id = _choose_image_token_id(text, gguf_file, decoder)
    decoder = _with_vocabulary(decoder, max(decoder.config.vocab_size, image_token_id + 1))
    config_fields.setdefault("vision_feature_select_strategy", _feature_strategy(tower.config))
    config = MoAIConfig(
        vision_config=tower.config,
        text_config=decoder.config,
        compressor=compressor,
        mixer=mixer,
        image_token_id=image_token_id,
        **config_fields,
    )
    wrap = partial(_WRAPPED_LINEAR.sub, r"\1.base_layer.\2") if config.plora_rank else str
    model = build_from_parts(cls, config, tower, decoder, NEW_PARTS, dtype, wrap)
    _set_generation_defaults(model, decoder.config)
    return model


def _feature_strategy(vision_config: PreTrainedConfig) -> str:
    return "default" if vision_config.model_type in CLASS_TOKEN_TOWERS else "full"


def _choose_image_token_id(text: Any, gguf_file: str | None, decoder: Backbone) -> int:
    """Id that the tokenizer will give ``<image>``; behind the last row when there is no tokenizer."""
    rows = decoder.config.vocab_size
    tokenizer = (
        None if isinstance(text, PreTrainedModel) else load_backbone_tokenizer(text, gguf_file, is_optional=True)
    )
    if tokenizer is None:
        return rows
    token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    if token_id > rows:
        raise ValueError(
            f"The tokenizer of {text} has {token_id} tokens, its model only {rows} rows. "
            "They do not belong together, or tokens were added without resizing: resize the model's embeddings first."
        )
    return token_id


def _with_vocabulary(decoder: Backbone, rows: int) -> Backbone:
    """Append rows to embedding and head: their means, the usual neutral start. They are neither read nor generated."""
    if rows == decoder.config.vocab_size:
        return decoder
    name = "embed_tokens.weight"
    tensors = decoder.tensors | {name: resize_rows(decoder.tensors[name], rows)}
    head = None if decoder.head is None else resize_rows(decoder.head, rows)
    decoder.config.vocab_size = rows
    return Backbone(decoder.config, tensors, head)


def _set_generation_defaults(model: PreTrainedModel, text_config: PreTrainedConfig) -> None:
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(text_config, name, None)
        if value is not None:
            setattr(model.generation_config, name, value)
    if model.generation_config.pad_token_id is None:
        eos = model.generation_config.eos_token_id
        model.generation_config.pad_token_id = eos[0] if isinstance(eos, list) else eos
