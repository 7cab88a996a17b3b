"""New, untrained models of one size: what the systems of a comparison start from.

One tokenizer, learned from the words of Scenes, one vision tower and one Llama are made from a seed; a MoAI, a Flamingo
and a LLaVA are built around these two. A Prismer has a tower and a RoBERTa decoder of its own: they get the same widths
and depths.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, StrictInt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
)

from moai.models.flamingo.backbones import build_processor as build_flamingo_processor
from moai.models.flamingo.backbones import load_tokenizer as load_flamingo_tokenizer
from moai.models.flamingo.modeling_flamingo import FlamingoForConditionalGeneration
from moai.models.flamingo.prompts import END_OF_CHUNK_TOKEN, IMAGE_TOKEN
from moai.models.moai.chat_templates import DEMO_CHAT_TEMPLATE, SYSTEM_PROMPT
from moai.models.moai.new_model import from_backbones
from moai.models.prismer.configuration_prismer import PrismerConfig
from moai.models.prismer.image_processing_prismer import PrismerImageProcessor
from moai.models.prismer.label_features import LabelFeatures, NameEncoder
from moai.models.prismer.modeling_prismer import PrismerForConditionalGeneration
from moai.models.prismer.processing_prismer import PrismerProcessor
from moai.models.prompted.processing_prompted import PromptedProcessor, PromptSettings
from moai.scenes.scenes import Scenes
from moai.scenes.vocabulary import OBJECT_CLASSES, STUFF_NAMES
from moai.settings import settings
from verbalizers.core.durable_files import atomic_folder
from verbalizers.core.sentences import verbalize_scene

__all__ = ["MODEL_TYPES", "SYSTEMS", "NewModelsSettings", "write_new_model"]

#: What can be made, and its ``model_type``.
MODEL_TYPES = {"moai": "moai", "flamingo": "flamingo", "llava": "llava", "prismer": "prismer", "prismerz": "prismer"}
SYSTEMS = tuple(MODEL_TYPES)
_Positive = Annotated[StrictInt, Field(ge=1)]
# RoBERTa's control tokens have these places.
_CONTROL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
_OTHER_TOKENS = ("<mask>", IMAGE_TOKEN, END_OF_CHUNK_TOKEN)
#: The release's demo prompt without its first sentence, which would be most of a short prompt.
_TEMPLATE = DEMO_CHAT_TEMPLATE.replace(repr(SYSTEM_PROMPT), "''")
assert SYSTEM_PROMPT not in _TEMPLATE


@settings(kw_only=True)
class NewModelsSettings:
    """Sizes of new models.

    Attributes:
        vision: Fields of the tower, a ``CLIPVisionConfig``: sizes, patches.
        text: Fields of the decoder, a ``LlamaConfig``: sizes; a Prismer takes those that a ``RobertaConfig`` knows.
        vocab_size: Of the tokenizer that all share.
        num_scenes: Training scenes from whose words it is learned.
        moai: ``compressor`` and ``mixer``, fields of theirs.
        flamingo: Fields of ``FlamingoConfig``, and ``every``.
        prismer: Fields of ``PrismerConfig``.
    """

    vision: dict[str, Any]
    text: dict[str, Any]
    vocab_size: _Positive = 1024
    num_scenes: _Positive = 300
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
def _backbones(chosen: NewModelsSettings, seed: int) -> Iterator[tuple[Path, Path]]:
    """Folders of a new tower and a new decoder with its tokenizer."""
    with tempfile.TemporaryDirectory() as temporary:
        vision, text = Path(temporary) / "vision", Path(temporary) / "text"
        torch.manual_seed(seed)
        tower = CLIPVisionModel(CLIPVisionConfig(**chosen.vision))
        tower.save_pretrained(vision)
        _image_processor(tower.config.image_size).save_pretrained(vision)
        tokenizer = _train_tokenizer(chosen)
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        sizes = {"tie_word_embeddings": True} | chosen.text
        LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **ids, **sizes)).save_pretrained(text)
        tokenizer.save_pretrained(text)
        torch.manual_seed(seed)
        yield vision, text


def _image_processor(side: int) -> CLIPImageProcessor:
    size = {"height": side, "width": side}
    return CLIPImageProcessor(size=size, crop_size=size)


def _said(chosen: NewModelsSettings) -> Iterator[str]:
    """Words of training scenes: questions, answers, verbalizations."""
    for scene in islice(Scenes(split="train", image_size=64), chosen.num_scenes):
        for asked in scene.questions:
            yield f"{asked.question} {asked.answer}"
        yield verbalize_scene(scene.truth)


def _train_tokenizer(chosen: NewModelsSettings) -> PreTrainedTokenizerFast:
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
    bos, pad, eos, unknown = _CONTROL_TOKENS
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, pad_token=pad, eos_token=eos, unk_token=unknown
    )
    fast.add_special_tokens({"extra_special_tokens": list(_OTHER_TOKENS)})
    return fast


def _write_moai(chosen: NewModelsSettings, seed: int, folder: Path) -> None:
    with _backbones(chosen, seed) as (vision, text):
        model, processor = from_backbones(vision, text, **chosen.moai)
        processor.chat_template = _TEMPLATE
        model.save_pretrained(folder)
        processor.save_pretrained(folder)


def _write_flamingo(chosen: NewModelsSettings, seed: int, folder: Path) -> None:
    with _backbones(chosen, seed) as (vision, text):
        model = FlamingoForConditionalGeneration.from_backbones(vision, text, **chosen.flamingo)
        model.save_pretrained(folder)
        build_flamingo_processor(model.config, load_flamingo_tokenizer(text), vision).save_pretrained(folder)


def _write_llava(chosen: NewModelsSettings, seed: int, folder: Path) -> None:
    with _backbones(chosen, seed) as (vision, text):
        tower, decoder = CLIPVisionModel.from_pretrained(vision), LlamaForCausalLM.from_pretrained(text)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(text)
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
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        processor = LlavaProcessor(
            _image_processor(tower.config.image_size),
            tokenizer,
            patch_size=tower.config.patch_size,
            vision_feature_select_strategy="default",
            image_token=IMAGE_TOKEN,
            num_additional_image_tokens=1,
            chat_template=_TEMPLATE,
        )
        model.save_pretrained(folder)
        PromptedProcessor(processor, PromptSettings(style="compact", introduction="Seen:")).save_pretrained(folder)


def _write_prismer(chosen: NewModelsSettings, seed: int, folder: Path, **changes: Any) -> None:
    tokenizer = _roberta_tokenizer(_train_tokenizer(chosen))
    heads, depth = chosen.text["num_attention_heads"], chosen.text["num_hidden_layers"]
    sizes = {name: chosen.text[name] for name in ("hidden_size", "intermediate_size")}
    sizes |= {"num_attention_heads": heads, "num_hidden_layers": depth, "vocab_size": len(tokenizer)}
    sizes |= {"max_position_embeddings": chosen.text["max_position_embeddings"], "type_vocab_size": 1}
    fields = chosen.prismer | changes
    config = PrismerConfig(vision_config=dict(chosen.vision), text_config=sizes, **fields)
    torch.manual_seed(seed)
    model = PrismerForConditionalGeneration(config).eval()
    side = config.vision_config.image_size
    images = PrismerImageProcessor(size={"height": side, "width": side})
    processor = PrismerProcessor(images, tokenizer, experts=config.experts, map_side=side)
    if config.experts:
        encoder = _new_name_encoder(tokenizer, seed)
        processor.label_features = LabelFeatures.fit([*OBJECT_CLASSES, *STUFF_NAMES], encoder, config.label_size)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _write_prismerz(chosen: NewModelsSettings, seed: int, folder: Path) -> None:
    _write_prismer(chosen, seed, folder, experts=())


def _roberta_tokenizer(tokenizer: PreTrainedTokenizerFast) -> RobertaTokenizer:
    """The same vocabulary as RoBERTa's class of tokenizers has it."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return RobertaTokenizer(vocab=tokenizer.get_vocab(), merges=[tuple(pair) for pair in content["merges"]])


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
