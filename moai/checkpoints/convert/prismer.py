"""Published Prismer and PrismerZ checkpoints -> a folder for ``moai ask``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig

from verbalizers.core.durable_files import atomic_folder
from verbalizers.core.vocabularies import COCO_PANOPTIC_NAMES, load_vocabulary
from verbalizers.core.words import strip_coco_suffixes

from ...models.prismer.configuration_prismer import LABEL_EXPERTS, PrismerConfig
from ...models.prismer.convert import (
    TIED_KEYS,
    build_config,
    convert_prismer_tensor,
    looks_like_prismer,
    plan_conversion,
)
from ...models.prismer.image_processing_prismer import PrismerImageProcessor
from ...models.prismer.label_features import LabelFeatures, NameEncoder
from ...models.prismer.modeling_prismer import PrismerForConditionalGeneration
from ...models.prismer.processing_prismer import PrismerProcessor
from ...models.prismer.scenes_prismer import KIND_OF_EXPERT
from ..io.published_settings import published_entries
from ..io.tensor_folder import TensorFolder, list_names
from ..io.tensor_writing import ShardedWriter
from ..io.verbalizer_settings import VerbalizerSettings
from .model_card import write_card
from .report import ConversionReport

KIND = "prismer"
LICENCE = "The published weights are under the NVIDIA Source Code License (NSCL): not for commercial use."
#: RoBERTa by its width.
_TOKENIZERS = {768: "FacebookAI/roberta-base", 1024: "FacebookAI/roberta-large"}
#: Of the original's experts those that are verbalizers here, by the models that it looked with.
_SEGMENTER, _DEPTH = "facebook/mask2former-swin-large-coco-panoptic", "Intel/dpt-hybrid-midas"


def is_prismer(source: Path) -> bool:
    """Whether a folder, or the file that it holds, has weights of a Prismer or PrismerZ in the original's layout."""
    folder = _find_folder(source)
    return folder.is_dir() and looks_like_prismer(TensorFolder(folder).shapes)


def _find_folder(source: Path) -> Path:
    return source.parent if source.is_file() and source.name in ("pytorch_model.bin", "model.safetensors") else source


def convert_prismer_checkpoint(
    source: Path,
    output: Path,
    *,
    label_encoder: str | Path | None = None,
    tokenizer: str | Path | None = None,
    num_vision_heads: int | None = None,
    num_text_heads: int | None = None,
    dtype: torch.dtype | None = None,
    force: bool = False,
    origin: str | None = None,
) -> ConversionReport:
    """Convert a published Prismer or PrismerZ.

    Args:
        source: Folder with the weights, ``pytorch_model.bin`` or safetensors, or that file.
        output: Folder to create; it appears only when everything succeeded.
        label_encoder: Folder or hub name of the CLIP whose text encoder turns names of labels into features; None =
            the folder written knows none, and says so when it is asked about an image with them.
        tokenizer: Folder or hub name; None = that beside the weights, else RoBERTa's of the same width.
        num_vision_heads: See :func:`moai.models.prismer.convert.build_config`.
        num_text_heads: Likewise.
        dtype: Store floating tensors in this dtype; None keeps theirs.
        force: Replace an existing output.
        origin: What report and card call the source; None = its path in the report.

    Returns:
        An account of what was read and written.

    Raises:
        ValueError: A key is unknown, missing or of the wrong shape, or a part cannot be had.
    """
    given, source = source, _find_folder(source)
    weights = TensorFolder(source)
    config = build_config(weights.shapes, num_vision_heads, num_text_heads)
    _check_completeness(weights, config)
    notes = [LICENCE]
    stored = dtype or _predominant_dtype(weights)
    config.dtype, config.architectures = stored, ["PrismerForConditionalGeneration"]
    reads_labels = bool(set(config.experts) & set(LABEL_EXPERTS))
    if label_encoder is not None and not reads_labels:
        raise ValueError("expected no --label-encoder for a model without maps of labels, got one. Leave it out.")
    processor = _build_processor(source, config, tokenizer)
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
    families: Counter[str] = Counter()
    with atomic_folder(output, force=force) as folder:
        writer = ShardedWriter(folder)
        for key, tensor in weights:
            for name, values in convert_prismer_tensor(key, tensor).items():
                writer.add(name, values.to(dtype) if dtype is not None and values.is_floating_point() else values)
                families[name.split(".")[1] if name.startswith("model.") else "lm_head"] += values.numel()
        files = writer.finish()
        config.save_pretrained(folder)
        text = config.text_config
        GenerationConfig(
            bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id
        ).save_pretrained(folder)
        processor.save_pretrained(folder)
        _choose_verbalizers(config).save(folder)
        write_card(folder, origin or given.name, notes[1:], "Prismer" if config.experts else "PrismerZ", (LICENCE,))
    return ConversionReport(
        kind=KIND,
        source=origin or given,
        output=output,
        num_source_tensors=len(weights.tensors),
        num_tensors=writer.num_tensors,
        num_parameters=writer.num_parameters,
        num_bytes=writer.num_bytes,
        dtype=str(stored).removeprefix("torch."),
        families=dict(families),
        files=tuple(files),
        sizes=_describe(config),
        notes=tuple(notes),
    )


def _check_completeness(weights: TensorFolder, config: PrismerConfig) -> None:
    with torch.device("meta"):
        model = PrismerForConditionalGeneration(config)
    tied = set(PrismerForConditionalGeneration._tied_weights_keys)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}
    complaints = plan_conversion(weights.shapes, expected)
    for key, same in TIED_KEYS.items():
        if (
            key in weights.tensors
            and same in weights.tensors
            and not torch.equal(weights.read(key), weights.read(same))
        ):
            complaints.append(f"{key} differs from {same}, with which it is tied")
    if complaints:
        raise ValueError(
            f"The checkpoint in {weights.folder} does not convert: {list_names(complaints)}. Check that the whole file "
            "of a Prismer or PrismerZ is there."
        )


def _predominant_dtype(weights: TensorFolder) -> torch.dtype:
    counts: Counter[torch.dtype] = Counter()
    for info in weights.tensors.values():
        if info.dtype.is_floating_point:
            counts[info.dtype] += torch.Size(info.shape).numel()
    return counts.most_common(1)[0][0]


def _build_processor(source: Path, config: PrismerConfig, tokenizer: str | Path | None) -> PrismerProcessor:
    if tokenizer is None:
        has_own = any((source / name).is_file() for name in ("tokenizer.json", "vocab.json"))
        tokenizer = source if has_own else _TOKENIZERS.get(config.text_config.hidden_size)
    if tokenizer is None:
        raise ValueError(f"expected the tokenizer of the text decoder beside the weights in {source}, got none.")
    try:
        loaded = AutoTokenizer.from_pretrained(tokenizer)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"expected the text decoder's tokenizer from {tokenizer}, got none: {str(error).splitlines()[0]} Copy its "
            f"tokenizer.json and tokenizer_config.json into {source}."
        ) from error
    if len(loaded) > config.text_config.vocab_size or loaded.pad_token_id != config.text_config.pad_token_id:
        raise ValueError(
            f"expected a tokenizer of at most {config.text_config.vocab_size} tokens with padding "
            f"{config.text_config.pad_token_id}, got {len(loaded)} and {loaded.pad_token_id} in {tokenizer}."
        )
    side = config.vision_config.image_size
    images = PrismerImageProcessor(size={"height": side, "width": side})
    return PrismerProcessor(images, loaded, experts=config.experts)


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
