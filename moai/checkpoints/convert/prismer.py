"""Published Prismer and PrismerZ checkpoints -> a folder for ``moai ask``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from verbalizers.core.vocabularies import COCO_PANOPTIC_NAMES, load_vocabulary
from verbalizers.core.words import strip_coco_suffixes

from ...models.prismer.configuration_prismer import LABEL_EXPERTS, PrismerConfig
from ...models.prismer.convert import (
    TIED_KEYS,
    build_config,
    convert_prismer_tensor,
    looks_like_prismer,
)
from ...models.prismer.image_processing_prismer import PrismerImageProcessor
from ...models.prismer.label_features import LabelFeatures, NameEncoder
from ...models.prismer.modeling_prismer import PrismerForConditionalGeneration
from ...models.prismer.processing_prismer import PrismerProcessor
from ...models.prismer.scenes_prismer import KIND_OF_EXPERT
from ..io.key_check import check_keys
from ..io.published_settings import published_entries
from ..io.tensor_folder import TensorFolder
from ..io.verbalizer_settings import VerbalizerSettings
from .driver import ConversionKind, Converted, load_fitting_tokenizer

_ADVICE = "Check that the whole file of a Prismer or PrismerZ is there."
LICENCE = "The published weights are under the NVIDIA Source Code License (NSCL): not for commercial use."
#: RoBERTa by its width.
_TOKENIZERS = {768: "FacebookAI/roberta-base", 1024: "FacebookAI/roberta-large"}
#: Of the original's experts those that are verbalizers here, by the models that it looked with.
_SEGMENTER, _DEPTH = "facebook/mask2former-swin-large-coco-panoptic", "Intel/dpt-hybrid-midas"


def _convert(
    weights: TensorFolder,
    source: Path,
    dtype: torch.dtype | None,
    *,
    label_encoder: str | Path | None = None,
    tokenizer: str | Path | None = None,
    num_vision_heads: int | None = None,
    num_text_heads: int | None = None,
) -> Converted:
    """A Prismer or PrismerZ; see :class:`.ConversionKind`.

    ``label_encoder``: folder or hub name of the CLIP whose text encoder turns names of labels into features; None = the
    folder written knows none, and says so when it is asked about an image with them. ``tokenizer``: None = that beside
    the weights, else RoBERTa's of the same width. Heads: see :func:`moai.models.prismer.convert.build_config`.
    """
    config = build_config(weights.shapes, num_vision_heads, num_text_heads)
    contradicting = [
        f"{key} differs from {same}, with which it is tied"
        for key, same in TIED_KEYS.items()
        if {key, same} <= set(weights.tensors) and not torch.equal(weights.read(key), weights.read(same))
    ]
    model_class = PrismerForConditionalGeneration
    check_keys(source, weights.shapes, convert_prismer_tensor, model_class, config, _ADVICE, contradicting)
    notes = [LICENCE]
    config.architectures = ["PrismerForConditionalGeneration"]
    reads_labels = bool(set(config.experts) & set(LABEL_EXPERTS))
    if label_encoder is not None and not reads_labels:
        raise ValueError("expected no --label-encoder for a model without maps of labels, got one. Leave it out.")
    default = _TOKENIZERS.get(config.text_config.hidden_size)
    text = config.text_config
    fitting = load_fitting_tokenizer(weights.place, tokenizer, default, text.vocab_size, text.pad_token_id)
    side = config.vision_config.image_size
    images = PrismerImageProcessor(size={"height": side, "width": side})
    processor = PrismerProcessor(images, fitting, experts=config.experts)
    if label_encoder is not None:
        processor.label_features = _fit_labels(label_encoder, config.label_size)
        notes.append(
            "the features of labels were computed here: other axes than the published weights learned, whose own may "
            "not be passed on. docs/prismer.md says how to put your copy in their place, or train the stems again"
        )
    elif reads_labels:
        notes.append(
            "it has no features of labels, without which nobody can ask about an image: the original's may not be "
            "passed on. Put your copy of them in (docs/prismer.md), or convert again with --label-encoder "
            "openai/clip-vit-large-patch14, whose text encoder it used"
        )
    special = {name: getattr(text, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return Converted(
        name="Prismer" if config.experts else "PrismerZ",
        config=config,
        tensors=(pair for key, tensor in weights for pair in convert_prismer_tensor(key, tensor).items()),
        licences=(LICENCE,),
        notes=notes,
        sizes=_describe(config),
        stored=dtype or weights.main_dtype,
        dtype=dtype,
        saved=[GenerationConfig(**special), processor],
        finish=lambda folder: [] if _choose_verbalizers(config).save(folder) else [],
    )


def _fit_labels(label_encoder: str | Path, size: int) -> LabelFeatures:
    names = [strip_coco_suffixes(name) for name in COCO_PANOPTIC_NAMES]
    vocabulary = published_entries()["detection"]["settings"]["vocabulary"]
    try:
        names += load_vocabulary(vocabulary)
    except ImportError:
        pass  # other names get their features when they are met
    return LabelFeatures.fit(names, NameEncoder.from_pretrained(label_encoder), size)


def _choose_verbalizers(config: PrismerConfig) -> VerbalizerSettings:
    """Who looks for what the model reads; normals come from depth, edges from the image itself."""
    entries = published_entries() | {"depth": {"kind": "depth", "settings": {"checkpoint": _DEPTH}}}
    entries |= {"normal": {"kind": "normal"}, "edge": {"kind": "edge"}}
    entries["segmentation"]["settings"]["checkpoint"] = _SEGMENTER
    kinds = tuple(KIND_OF_EXPERT[expert] for expert in config.experts)
    return VerbalizerSettings(tuple(entries[kind] for kind in kinds if kind in entries), kinds=kinds)


def _describe(config: PrismerConfig) -> dict[str, Any]:
    vision, text = config.vision_config, config.text_config
    return {
        "vision": f"{vision.num_hidden_layers} layers of {vision.hidden_size}, {vision.num_attention_heads} heads, "
        f"{vision.image_size} px, patches of {vision.patch_size}",
        "decoder": f"{text.num_hidden_layers} layers of {text.hidden_size}, {text.num_attention_heads} heads",
        "experts": ", ".join(config.experts) or "none",
    }


KIND = ConversionKind("prismer", looks_like_prismer, _convert, ("label_encoder",))
