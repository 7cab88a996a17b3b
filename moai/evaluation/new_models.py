"""Models of one size: what the systems of a comparison start from.

A MoAI, a Flamingo and a LLaVA are built around the vision tower, the Llama and the tokenizer of a MoAI that has learned
before. A Prismer takes the tower; its decoder is a RoBERTa, which cannot take a Llama's weights: it is new, of the same
widths and depths, and its tokenizer is learned from the words of Scenes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    RobertaTokenizer,
)

from moai.checkpoints.io.lookup import find_checkpoint
from moai.models.flamingo.backbones import build_processor as build_flamingo_processor
from moai.models.flamingo.backbones import load_tokenizer as load_flamingo_tokenizer
from moai.models.flamingo.modeling_flamingo import FlamingoForConditionalGeneration
from moai.models.flamingo.prompts import END_OF_CHUNK_TOKEN, IMAGE_TOKEN
from moai.models.moai.modeling_moai import MoAIForConditionalGeneration
from moai.models.moai.new_model import from_backbones
from moai.models.moai.processing_moai import MoAIProcessor
from moai.models.moai.text_reader import extract_decoder
from moai.models.prismer.configuration_prismer import PrismerConfig
from moai.models.prismer.image_processing_prismer import PrismerImageProcessor
from moai.models.prismer.label_features import LabelFeatures, NameEncoder
from moai.models.prismer.modeling_prismer import PrismerForConditionalGeneration
from moai.models.prismer.processing_prismer import PrismerProcessor
from moai.models.prompted.processing_prompted import PromptedProcessor, PromptSettings
from moai.scenes.scenes import Scenes
from moai.scenes.vocabulary import OBJECT_CLASSES, STUFF_NAMES
from moai.settings import Positive, settings
from verbalizers.core.durable_files import atomic_folder
from verbalizers.core.sentences import verbalize_scene

__all__ = ["MODEL_TYPES", "SYSTEMS", "NewModelsSettings", "write_new_model"]

#: What can be made, and its ``model_type``.
MODEL_TYPES = {"moai": "moai", "flamingo": "flamingo", "llava": "llava", "prismer": "prismer", "prismerz": "prismer"}
SYSTEMS = tuple(MODEL_TYPES)
# RoBERTa's control tokens have these places.
_CONTROL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
_OTHER_TOKENS = ("<mask>", IMAGE_TOKEN, END_OF_CHUNK_TOKEN)
#: Of a Prismer's decoder, whose prompt is a question.
_LONGEST = 512


@settings(kw_only=True)
class NewModelsSettings:
    """Backbones and sizes.

    Attributes:
        backbones: Folder or bundled name of a MoAI whose tower, decoder and tokenizer are taken.
        vocab_size: Of a Prismer's tokenizer.
        num_scenes: Training scenes from whose words it is learned.
        moai: ``compressor`` and ``mixer``, fields of theirs.
        flamingo: Fields of ``FlamingoConfig``, and ``every``.
        prismer: Fields of ``PrismerConfig``.
    """

    backbones: str
    vocab_size: Positive = 1024
    num_scenes: Positive = 300
    moai: dict[Literal["compressor", "mixer"], dict[str, Any]] = field(default_factory=dict)
    flamingo: dict[str, Any] = field(default_factory=dict)
    prismer: dict[str, Any] = field(default_factory=dict)


def write_new_model(chosen: NewModelsSettings, system: str, seed: int, folder: Path) -> None:
    """Write a new model with its processor, whole or not at all: the same bits for the same arguments.

    Args:
        chosen: Sizes.
        system: One of :data:`SYSTEMS`.
        seed: Of all new weights; tower and decoder of one seed are the same in a MoAI, a Flamingo and a LLaVA.
        folder: Is written; one that is there stays as it is.

    Raises:
        ValueError: A size does not fit.
    """
    if folder.is_dir():
        return
    with atomic_folder(folder) as temporary:
        _BUILDERS[system](chosen, seed, temporary)


@contextmanager
def _backbones(chosen: NewModelsSettings, seed: int) -> Iterator[tuple[Path, Path, MoAIProcessor]]:
    """Folders of tower and decoder, with its tokenizer, and the processor that knew them; seeds what will be new."""
    source, processor = _load_source(chosen)
    with tempfile.TemporaryDirectory() as temporary:
        vision, text = Path(temporary) / "vision", Path(temporary) / "text"
        source.model.vision_tower.save_pretrained(vision)
        side = source.config.vision_config.image_size
        size = {"height": side, "width": side}
        CLIPImageProcessor(size=size, crop_size=size, **_statistics(processor)).save_pretrained(vision)
        extract_decoder(source).save_pretrained(text)
        processor.tokenizer.save_pretrained(text)
        torch.manual_seed(seed)
        yield vision, text, processor


def _load_source(chosen: NewModelsSettings) -> tuple[MoAIForConditionalGeneration, MoAIProcessor]:
    folder = find_checkpoint(chosen.backbones)
    model = MoAIForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model, MoAIProcessor.from_pretrained(folder)


def _statistics(processor: MoAIProcessor) -> dict[str, list[float]]:
    return {name: getattr(processor.image_processor, name) for name in ("image_mean", "image_std")}


def _said(chosen: NewModelsSettings) -> Iterator[str]:
    """Words of training scenes: questions, answers, verbalizations."""
    for scene in islice(Scenes(split="train", image_size=64), chosen.num_scenes):
        for asked in scene.questions:
            yield f"{asked.question} {asked.answer}"
        yield verbalize_scene(scene.truth)


def _train_tokenizer(chosen: NewModelsSettings) -> RobertaTokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=chosen.vocab_size - len(_OTHER_TOKENS),
        special_tokens=list(_CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_said(chosen), trainer)
    tokenizer.add_special_tokens(list(_OTHER_TOKENS))
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return RobertaTokenizer(vocab=tokenizer.get_vocab(), merges=[tuple(pair) for pair in merges])


def _write_moai(chosen: NewModelsSettings, seed: int, folder: Path) -> None:
    with _backbones(chosen, seed) as (vision, text, source):
        model, processor = from_backbones(vision, text, **chosen.moai)
        processor.chat_template = source.chat_template
        model.save_pretrained(folder)
        processor.save_pretrained(folder)


def _write_flamingo(chosen: NewModelsSettings, seed: int, folder: Path) -> None:
    with _backbones(chosen, seed) as (vision, text, _):
        model = FlamingoForConditionalGeneration.from_backbones(vision, text, **chosen.flamingo)
        model.save_pretrained(folder)
        build_flamingo_processor(model.config, load_flamingo_tokenizer(text), vision).save_pretrained(folder)


def _write_llava(chosen: NewModelsSettings, seed: int, folder: Path) -> None:
    with _backbones(chosen, seed) as (vision, text, source):
        tower, decoder = CLIPVisionModel.from_pretrained(vision), LlamaForCausalLM.from_pretrained(text)
        tokenizer = AutoTokenizer.from_pretrained(text, trust_remote_code=False)
        image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        config = LlavaConfig(
            vision_config=tower.config,
            text_config=decoder.config,
            image_token_index=image_token_id,
            vision_feature_layer=-1,
            tie_word_embeddings=decoder.config.tie_word_embeddings,
        )
        model = LlavaForConditionalGeneration(config)
        model.model.vision_tower.load_state_dict(tower.state_dict())
        model.model.language_model.load_state_dict(decoder.model.state_dict())
        model.lm_head.load_state_dict(decoder.lm_head.state_dict())
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        processor = LlavaProcessor(
            CLIPImageProcessor.from_pretrained(vision),
            tokenizer,
            patch_size=tower.config.patch_size,
            vision_feature_select_strategy="default",
            image_token=IMAGE_TOKEN,
            num_additional_image_tokens=1,
            chat_template=source.chat_template,
        )
        model.save_pretrained(folder)
        PromptedProcessor(processor, PromptSettings(style="compact", introduction="Seen:")).save_pretrained(folder)


def _write_prismer(chosen: NewModelsSettings, seed: int, folder: Path, **changes: Any) -> None:
    tokenizer = _train_tokenizer(chosen)
    source, like = _load_source(chosen)
    vision, text = source.config.vision_config, source.config.text_config
    same = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
    sizes = {name: getattr(text, name) for name in same} | {"vocab_size": len(tokenizer), "type_vocab_size": 1}
    sizes |= {"max_position_embeddings": min(_LONGEST, text.max_position_embeddings)}
    # RoBERTa's own numbers are those of 768 channels and of many epochs.
    sizes |= {"initializer_range": 0.02 * (768 / text.hidden_size) ** 0.5}
    sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = PrismerConfig(vision_config=vision.to_dict(), text_config=sizes, **(chosen.prismer | changes))
    torch.manual_seed(seed)
    model = PrismerForConditionalGeneration(config).eval()
    _take_tower(model.model.vision_encoder, source.model.vision_tower.state_dict())
    side = config.vision_config.image_size
    images = PrismerImageProcessor(size={"height": side, "width": side}, **_statistics(like))
    processor = PrismerProcessor(images, tokenizer, experts=config.experts, map_side=side)
    if config.experts:
        encoder = _new_name_encoder(tokenizer, seed)
        processor.label_features = LabelFeatures.fit([*OBJECT_CLASSES, *STUFF_NAMES], encoder, config.label_size)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _take_tower(encoder: torch.nn.Module, tower: Mapping[str, torch.Tensor]) -> None:
    """Put a CLIP tower's weights into a Prismer's encoder, which has no class token; adaptors and experts stay new.

    What stems make of maps is added to the tower's positions, which may be far larger than new ones: as much larger are
    the stems' last layers then, and the table of instances.
    """
    renamed = {"embeddings.patch_embedding.": "stems.rgb.", "pre_layrnorm.": "pre_layernorm."}
    renamed |= {"embeddings.position_embedding.weight": "positional_embedding", "encoder.layers.": "layers."}
    own = {}
    for name, tensor in tower.items():
        name = name.removeprefix("vision_model.")
        for theirs, ours in renamed.items():
            name = name.replace(theirs, ours)
        own[name] = tensor[1:] if name == "positional_embedding" else tensor
    own = {name: tensor for name, tensor in own.items() if not name.startswith("embeddings.")}
    if unknown := encoder.load_state_dict(own, strict=False).unexpected_keys:
        raise ValueError(f"expected a CLIP tower for a Prismer, got one with {unknown}. Name other `backbones`.")
    positions = encoder.positional_embedding
    scale = positions.std() * positions.shape[-1] ** 0.5  # of new ones: 1
    with torch.no_grad():
        for expert in encoder.experts:
            encoder.stems[expert][-1].weight *= scale
        if "obj_detection" in encoder.experts:
            encoder.instance_embedding.weight *= scale


def _write_prismerz(chosen: NewModelsSettings, seed: int, folder: Path) -> None:
    _write_prismer(chosen, seed, folder, experts=())


def _new_name_encoder(tokenizer: RobertaTokenizer, seed: int) -> NameEncoder:
    """A text encoder that nobody trained: each name has numbers of its own, and like names not like ones."""
    torch.manual_seed(seed)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=32, projection_dim=64, **ids,
    )  # fmt: skip
    return NameEncoder(CLIPTextModelWithProjection(config), tokenizer)


_BUILDERS: dict[str, Callable[[NewModelsSettings, int, Path], None]] = {
    "moai": _write_moai,
    "flamingo": _write_flamingo,
    "llava": _write_llava,
    "prismer": _write_prismer,
    "prismerz": _write_prismerz,
}
