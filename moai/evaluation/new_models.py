"""Models of one size: what the systems of a comparison start from.

A MoAI, a Flamingo and a LLaVA are built around one vision tower, one Llama and one tokenizer. These are a MoAI's that
has learned before, or new: made from a seed, the tokenizer learned from the words of Scenes. A Prismer takes the tower;
its decoder is a RoBERTa, which cannot take a Llama's weights: it is always new, of the same widths and depths.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, StrictInt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
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

from moai.checkpoints.io.lookup import find_checkpoint
from moai.models.flamingo.backbones import build_processor as build_flamingo_processor
from moai.models.flamingo.backbones import load_tokenizer as load_flamingo_tokenizer
from moai.models.flamingo.modeling_flamingo import FlamingoForConditionalGeneration
from moai.models.flamingo.prompts import END_OF_CHUNK_TOKEN, IMAGE_TOKEN
from moai.models.moai.chat_templates import DEMO_CHAT_TEMPLATE, SYSTEM_PROMPT
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
#: Of a Prismer's decoder, whose prompt is a question.
_LONGEST = 512


@settings(kw_only=True)
class NewModelsSettings:
    """Backbones and sizes.

    Attributes:
        backbones: Folder or bundled name of a MoAI whose tower, decoder and tokenizer are taken; None = new ones.
        vision: Fields of a new tower, a ``CLIPVisionConfig``: sizes, patches.
        text: Fields of a new decoder, a ``LlamaConfig``: sizes; a Prismer takes those that a ``RobertaConfig`` knows.
        vocab_size: Of a new tokenizer: the one that all share, or a Prismer's.
        num_scenes: Training scenes from whose words it is learned.
        moai: ``compressor`` and ``mixer``, fields of theirs.
        flamingo: Fields of ``FlamingoConfig``, and ``every``.
        prismer: Fields of ``PrismerConfig``.
    """

    backbones: str | None = None
    vision: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    vocab_size: _Positive = 1024
    num_scenes: _Positive = 300
    moai: dict[Literal["compressor", "mixer"], dict[str, Any]] = field(default_factory=dict)
    flamingo: dict[str, Any] = field(default_factory=dict)
    prismer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if bool(self.backbones) == bool(self.vision and self.text) or bool(self.vision) != bool(self.text):
            raise ValueError(
                "expected `backbones`, or `vision` and `text`, got neither, a part or all. Name a MoAI, or sizes."
            )


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
        if chosen.backbones is not None:
            source, processor = _load_source(chosen)
            source.model.vision_tower.save_pretrained(vision)
            _image_processor(source.config.vision_config.image_size, processor).save_pretrained(vision)
            extract_decoder(source).save_pretrained(text)
            processor.tokenizer.save_pretrained(text)
            torch.manual_seed(seed)
            yield vision, text
            return
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


def _load_source(chosen: NewModelsSettings) -> tuple[MoAIForConditionalGeneration, MoAIProcessor]:
    folder = find_checkpoint(chosen.backbones)
    model = MoAIForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model, MoAIProcessor.from_pretrained(folder)


def _chat_template(chosen: NewModelsSettings) -> str:
    """What the decoder knows, or, for a new one, the shortest."""
    if chosen.backbones is None:
        return _TEMPLATE
    return MoAIProcessor.from_pretrained(find_checkpoint(chosen.backbones)).chat_template


def _image_processor(side: int, like: MoAIProcessor | None = None) -> CLIPImageProcessor:
    size = {"height": side, "width": side}
    names = () if like is None else ("image_mean", "image_std")
    return CLIPImageProcessor(size=size, crop_size=size, **{n: getattr(like.image_processor, n) for n in names})


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
        processor.chat_template = _chat_template(chosen)
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
            chat_template=_chat_template(chosen),
        )
        model.save_pretrained(folder)
        PromptedProcessor(processor, PromptSettings(style="compact", introduction="Seen:")).save_pretrained(folder)


def _write_prismer(chosen: NewModelsSettings, seed: int, folder: Path, **changes: Any) -> None:
    tokenizer = _roberta_tokenizer(_train_tokenizer(chosen))
    vision, text, source = dict(chosen.vision), chosen.text, None
    if chosen.backbones is not None:
        source, like = _load_source(chosen)
        vision, text = source.config.vision_config.to_dict(), source.config.text_config.to_dict()
    same = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
    sizes = {name: text[name] for name in same} | {"vocab_size": len(tokenizer), "type_vocab_size": 1}
    sizes |= {"max_position_embeddings": min(_LONGEST, text["max_position_embeddings"])}
    fields = chosen.prismer | changes
    config = PrismerConfig(vision_config=vision, text_config=sizes, **fields)
    torch.manual_seed(seed)
    model = PrismerForConditionalGeneration(config).eval()
    side = config.vision_config.image_size
    norms = {}
    if source is not None:
        _take_tower(model.model.vision_encoder, source.model.vision_tower.state_dict())
        norms = {name: getattr(like.image_processor, name) for name in ("image_mean", "image_std")}
    images = PrismerImageProcessor(size={"height": side, "width": side}, **norms)
    processor = PrismerProcessor(images, tokenizer, experts=config.experts, map_side=side)
    if config.experts:
        encoder = _new_name_encoder(tokenizer, seed)
        processor.label_features = LabelFeatures.fit([*OBJECT_CLASSES, *STUFF_NAMES], encoder, config.label_size)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _take_tower(encoder: torch.nn.Module, tower: Mapping[str, torch.Tensor]) -> None:
    """Put a CLIP tower's weights into a Prismer's encoder, which has no class token; adaptors and experts stay new."""
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
