"""``task: tcl``: from a recipe to a TCL, whose image encoder is a vision tower."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from moai.checkpoints.io.contents import hash_checkpoint
from moai.data.image_samples import ImageDataset
from moai.models.backbones import load_vision_backbone
from moai.models.tcl.configuration_tcl import TCLConfig
from moai.models.tcl.image_processing_tcl import TCLImageProcessor
from moai.models.tcl.modeling_tcl import TCLModel
from moai.models.tcl.processing_tcl import TCLProcessor, clean_caption
from moai.settings import load_settings, to_plain

from ...model_building import find_start
from ...trainer import TrainingResult
from ..starts import run_image_task
from .settings import TCLModelSettings, TCLSettings
from .task import TCLTask

__all__ = ["run_tcl", "train_word_pieces"]

_CONTROLS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_MOST_TEXTS = 20_000


def run_tcl(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> TrainingResult:
    """Train a TCL, or go on from the last checkpoint.

    Args:
        source: A recipe: YAML file, mapping or settings.
        overrides: ``key=value`` words laid over it.

    Returns:
        Where the result lies: a TCL with its processor.

    Raises:
        ValueError: The recipe, the data or a checkpoint is not as expected.
    """
    settings = load_settings(TCLSettings, source, overrides)
    chosen = settings.model
    dataset = ImageDataset(settings.data, has_captions=True)
    validation = None if settings.validation is None else ImageDataset(settings.validation, has_captions=True)
    named = {"path": chosen.path, "vision": chosen.vision, "text": chosen.text, "tokenizer": chosen.tokenizer}
    files = {name: hash_checkpoint(find_start(value)) for name, value in named.items() if isinstance(value, str)}
    origin = {"model": to_plain(chosen), "seed": settings.seed, "files": files, "data": dataset.identity()}

    def write_start(folder: Path) -> None:
        model, processor = _build(chosen, dataset)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)

    def build(base: Path, start: Mapping[str, str]) -> TCLTask:
        model = TCLModel.from_pretrained(base, dtype=torch.float32)
        processor = TCLProcessor.from_pretrained(base)
        return TCLTask(settings, model, processor, dataset, validation, start)

    def write(base: Path, folder: Path, state: dict[str, torch.Tensor]) -> None:
        model = TCLModel.from_pretrained(base, dtype=torch.float32)
        model.load_state_dict(state, strict=False)
        model.to(getattr(torch, settings.saving.dtype or "float32")).save_pretrained(folder)
        TCLProcessor.from_pretrained(base).save_pretrained(folder)

    return run_image_task(settings, source, overrides, origin, write_start, build, write)


def _build(chosen: TCLModelSettings, dataset: ImageDataset) -> tuple[TCLModel, TCLProcessor]:
    """The model before the first step, with its processor."""
    if chosen.path is not None:
        start = find_start(chosen.path)
        return TCLModel.from_pretrained(start, dtype=torch.float32), TCLProcessor.from_pretrained(start)
    tower = load_vision_backbone(find_start(chosen.vision)) if isinstance(chosen.vision, str) else None
    bert = None
    if isinstance(chosen.text, str):
        bert = BertForMaskedLM.from_pretrained(find_start(chosen.text), dtype=torch.float32, use_safetensors=True)
    named = chosen.tokenizer or (chosen.text if bert is not None else None)
    tokenizer = AutoTokenizer.from_pretrained(find_start(named)) if named else None
    if tokenizer is None:
        captions = (said for index in range(min(len(dataset), _MOST_TEXTS)) for said in dataset[index].captions)
        tokenizer = train_word_pieces((clean_caption(said, chosen.max_words) for said in captions), chosen.vocab_size)
    if bert is None:
        fields = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **chosen.text}
        text_config = BertConfig(**fields)
    else:
        text_config = bert.config
    if len(tokenizer) > text_config.vocab_size:
        raise ValueError(
            f"expected at least {len(tokenizer)} words in `model.text` (its tokenizer's), got vocab_size "
            f"{text_config.vocab_size}. Leave it out."
        )
    if chosen.max_text_length > text_config.max_position_embeddings:
        raise ValueError(
            "`model.max_text_length` must be at most the text encoder's max_position_embeddings, "
            f"{text_config.max_position_embeddings}, got {chosen.max_text_length}."
        )
    config = TCLConfig(
        vision_config=chosen.vision if tower is None else tower.config,
        text_config=text_config,
        num_text_layers=chosen.num_text_layers,
        projection_dim=chosen.projection_dim,
    )
    model = TCLModel(config)
    if tower is not None:
        missing = model.vision_model.load_state_dict(tower.tensors, strict=False).missing_keys
        assert not missing, missing
    if bert is not None:
        _copy_bert(bert, model)
    side = config.vision_config.image_size
    images = TCLImageProcessor(size={"height": side, "width": side})
    words = {"max_words": chosen.max_words, "max_text_length": chosen.max_text_length}
    return model, TCLProcessor(images, tokenizer, **words)


def _copy_bert(bert: BertForMaskedLM, model: TCLModel) -> None:
    """Take over a BERT's layers, embeddings and head; what reads images stays new."""
    names = {"bert.embeddings.": "embeddings.", "bert.encoder.layer.": "layers.", "cls.predictions.": "lm_head."}
    state = {}
    for key, value in bert.state_dict().items():
        for theirs, ours in names.items():
            if key.startswith(theirs) and ".decoder." not in key:
                state[ours + key.removeprefix(theirs)] = value
    result = model.text_model.load_state_dict(state, strict=False)
    assert not result.unexpected_keys, result
    assert all("crossattention" in name for name in result.missing_keys), result


def train_word_pieces(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of BERT's kind whose word pieces are learned.

    Args:
        texts: What they are learned from, in lower case.
        vocab_size: Most word pieces, control tokens included.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    def build(model: models.WordPiece) -> Tokenizer:
        core = Tokenizer(model)
        core.normalizer = normalizers.BertNormalizer(lowercase=True)
        core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        core.decoder = decoders.WordPiece()
        return core

    learning, sentences = build(models.WordPiece(unk_token=_CONTROLS[1])), list(texts)
    # The trainer numbers the pieces that go on with a word in an order of its own at every run, and merges by numbers:
    # so they are handed to it, numbered. That makes them control tokens, hence the second tokenizer.
    letters = sorted({letter for text in sentences for letter in learning.normalizer.normalize_str(text)} - {" "})
    first = [*_CONTROLS, *(f"##{letter}" for letter in letters)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(vocab_size, len(first)), special_tokens=first, show_progress=False, min_frequency=2
    )
    learning.train_from_iterator(sentences, trainer)
    core = build(models.WordPiece(learning.get_vocab(), unk_token=_CONTROLS[1]))
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=core, **dict(zip(names, _CONTROLS, strict=True)))
