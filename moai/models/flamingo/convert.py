"""OpenFlamingo's key names to ours, and its parts to one model.

A released checkpoint holds resampler, gated blocks and embeddings; decoder and vision tower come from where they were
published. A checkpoint that holds more (a whole state dict) is read whole, and what it holds wins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import CLIPVisionConfig, PreTrainedTokenizerBase

from ...checkpoints.io.key_check import check_keys
from ...checkpoints.io.tensor_folder import list_names
from ..backbones import Backbone, Decoder, load_decoder, load_vision_backbone
from .backbones import load_tokenizer, select_vision_features
from .configuration_flamingo import FlamingoConfig
from .prompts import END_OF_CHUNK_TOKEN, IMAGE_TOKEN

__all__ = ["ConvertedFlamingo", "convert_open_clip_tower", "convert_open_flamingo", "looks_like_open_flamingo"]

_BLOCK = re.compile(r"lang_encoder\.(?:\w+\.)+?(\d+)\.gated_cross_attn_layer\.(.+)")
# Parameters under a second name, and buffers that are computed.
_ALIASES = re.compile(
    r"lang_encoder\.(old_decoder_blocks|gated_cross_attn_layers)\."
    r"|lang_encoder\..*\.(rotary_emb\.inv_freq|attention\.bias|attention\.masked_bias)$"
)
_OLD_VISION = re.compile(r"(?:vision_encoder\.)?(?:visual\.)?")
_RESAMPLER = ((r"^(layers\.\d+)\.0\.", r"\1.attention."), (r"^(layers\.\d+)\.1\.", r"\1.feed_forward."))
_GATED = (
    (r"^attn_gate$", "attention_gate"),
    (r"^ff_gate$", "feed_forward_gate"),
    (r"^attn\.", "attention."),
    (r"^ff\.", "feed_forward."),
)
_CLIP = (
    (r"^class_embedding$", "embeddings.class_embedding"),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^conv1\.weight$", "embeddings.patch_embedding.weight"),
    (r"^ln_pre\.", "pre_layrnorm."),
    (r"^ln_post\.", "post_layernorm."),
    (r"^transformer\.resblocks\.(\d+)\.ln_1\.", r"encoder.layers.\1.layer_norm1."),
    (r"^transformer\.resblocks\.(\d+)\.ln_2\.", r"encoder.layers.\1.layer_norm2."),
    (r"^transformer\.resblocks\.(\d+)\.attn\.out_proj\.", r"encoder.layers.\1.self_attn.out_proj."),
    (r"^transformer\.resblocks\.(\d+)\.mlp\.c_fc\.", r"encoder.layers.\1.mlp.fc1."),
    (r"^transformer\.resblocks\.(\d+)\.mlp\.c_proj\.", r"encoder.layers.\1.mlp.fc2."),
)
_CLIP_JOINED = re.compile(r"^transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)$")


def looks_like_open_flamingo(names: Iterable[str]) -> bool:
    """Whether tensors of these names are an OpenFlamingo's."""
    plain = {name.removeprefix("module.") for name in names}
    return "perceiver.latents" in plain and any(".gated_cross_attn_layer." in name for name in plain)


@dataclass
class ConvertedFlamingo:
    """A model as tensors, and what belongs to it.

    Attributes:
        config: Its configuration.
        tensors: By our names.
        tokenizer: The decoder's with the new tokens; None where the decoder came without.
        notes: What is worth knowing, one sentence each.
    """

    config: FlamingoConfig
    tensors: dict[str, torch.Tensor]
    tokenizer: PreTrainedTokenizerBase | None
    notes: list[str]


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def convert_open_clip_tower(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A vision tower's tensors from open_clip's names to those of ``CLIPVisionModel``.

    Args:
        tensors: By their names inside the tower (``conv1.weight``); its ``proj``, which Flamingo does not use, is
            left out.

    Raises:
        ValueError: A name is unknown.
    """
    converted, unknown = {}, []
    for name, tensor in tensors.items():
        if name == "proj":
            continue
        if match := _CLIP_JOINED.match(name):
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                converted[f"encoder.layers.{match[1]}.self_attn.{part}_proj.{match[2]}"] = rows
        elif (target := _rename(name, _CLIP)) != name:
            converted[target] = tensor
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f"expected the tensors of open_clip's vision tower, got {list_names(sorted(unknown))} too.")
    return converted


def _read_tower_config(tensors: Mapping[str, torch.Tensor]) -> CLIPVisionConfig:
    """The configuration of an OpenAI CLIP tower, whose heads are 64 wide, from its tensors."""
    patches = tensors["embeddings.patch_embedding.weight"]
    side = int((len(tensors["embeddings.position_embedding.weight"]) - 1) ** 0.5)
    width = len(patches)
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=len(tensors["encoder.layers.0.mlp.fc1.weight"]),
        num_hidden_layers=sum(name.endswith(".mlp.fc1.weight") for name in tensors),
        num_attention_heads=max(1, width // 64),
        patch_size=patches.shape[-1],
        image_size=side * patches.shape[-1],
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
    )


def convert_open_flamingo(
    tensors: Mapping[str, torch.Tensor],
    text: Any,
    vision: Any = None,
    **config_fields: Any,
) -> ConvertedFlamingo:
    """Convert an OpenFlamingo.

    Args:
        tensors: Its checkpoint, by the released code's names.
        text: Folder, hub name or loaded model of its decoder.
        vision: Likewise of its CLIP; None = the checkpoint holds the tower.
        **config_fields: Fields of :class:`.FlamingoConfig` that shapes do not tell. The heads of resampler and gated
            blocks are 8, as in the released code; without a tokenizer beside ``text``, ``image_token_id`` and
            ``end_of_chunk_token_id`` must be given.

    Raises:
        ValueError: A tensor is unknown, missing or of the wrong shape; names are listed.
    """
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    notes: list[str] = []
    decoder = load_decoder(text)
    found, unknown = _sort(tensors, decoder)
    tower, rest = _find_tower(found.pop("vision"), vision)
    unknown += rest
    if unknown:
        raise ValueError(
            f"{len(unknown)} tensor(s) of the checkpoint have no place in a Flamingo around "
            f"{decoder.config.model_type}: {list_names(sorted(unknown))}. Give the decoder that it was trained with."
        )
    decoder = _with_checkpoint(decoder, found["decoder"], found["head"], notes)
    fields, tokenizer = _choose_tokens(text, decoder, config_fields)
    config = FlamingoConfig(
        vision_config=tower.config,
        text_config=decoder.config,
        tie_word_embeddings=decoder.head is None,
        **_read_sizes(found, tower.config.hidden_size, decoder.config.hidden_size),
        vision_feature_select_strategy=select_vision_features(tower.config),
        **fields,
    )
    state = {f"model.vision_tower.{name}": tensor for name, tensor in tower.tensors.items()}
    state |= {f"model.resampler.{name}": tensor for name, tensor in found["resampler"].items()}
    state |= {f"model.gated_blocks.{name}": tensor for name, tensor in found["blocks"].items()}
    state |= {f"model.language_model.{name}": tensor for name, tensor in decoder.tensors.items()}
    if decoder.head is not None:
        state["lm_head.weight"] = decoder.head
    from .modeling_flamingo import FlamingoForConditionalGeneration

    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    advice = "Give the parts that it was trained with."
    check_keys(
        "an OpenFlamingo", shapes, lambda key, tensor: {key: tensor}, FlamingoForConditionalGeneration, config, advice
    )
    return ConvertedFlamingo(config, state, tokenizer, notes)


def _sort(
    tensors: Mapping[str, torch.Tensor], decoder: Decoder
) -> tuple[dict[str, dict[str, torch.Tensor]], list[str]]:
    """Tensors by part under our names, and the names that belong nowhere."""
    found: dict[str, dict[str, torch.Tensor]] = {
        part: {} for part in ("vision", "resampler", "blocks", "decoder", "head")
    }
    unknown = []
    for name, tensor in tensors.items():
        inner = name.removeprefix("lang_encoder.").replace(".decoder_layer.", ".")
        if _ALIASES.match(name):
            continue
        if name.startswith("perceiver."):
            found["resampler"][_rename(name.removeprefix("perceiver."), _RESAMPLER)] = tensor
        elif match := _BLOCK.fullmatch(name):
            found["blocks"][f"{match[1]}.{_rename(match[2], _GATED)}"] = tensor
        elif name.startswith("vision_encoder."):
            found["vision"][_OLD_VISION.sub("", name, count=1)] = tensor
        elif inner in ("lm_head.weight", "embed_out.weight"):
            found["head"]["weight"] = tensor
        elif name != inner and inner.removeprefix(decoder.prefix) in decoder.tensors:
            found["decoder"][inner.removeprefix(decoder.prefix)] = tensor
        else:
            unknown.append(name)
    return found, unknown


def _find_tower(own: dict[str, torch.Tensor], vision: Any) -> tuple[Backbone, list[str]]:
    """The vision tower: the checkpoint's own tensors, else the published one's."""
    if vision is None and not own:
        raise ValueError(
            "expected a vision tower: the checkpoint holds none. Give the CLIP that it was trained with "
            "(--vision openai/clip-vit-large-patch14)."
        )
    tensors = convert_open_clip_tower(own)
    if vision is None:
        return Backbone(_read_tower_config(tensors), tensors), []
    tower = load_vision_backbone(vision)
    unknown = [f"vision_encoder: {name}" for name in tensors if name not in tower.tensors]
    return Backbone(tower.config, tower.tensors | tensors), unknown


def _with_checkpoint(
    decoder: Decoder, own: Mapping[str, torch.Tensor], head: Mapping[str, torch.Tensor], notes: list[str]
) -> Decoder:
    """The decoder with the checkpoint's embeddings, and whatever else of it the checkpoint holds."""
    if decoder.embedding_name not in own:
        raise ValueError(
            f"expected the word embeddings (lang_encoder.{decoder.prefix}{decoder.embedding_name}) in the checkpoint, "
            "got none: the two new tokens were trained."
        )
    rows, old_rows = len(own[decoder.embedding_name]), decoder.config.vocab_size
    decoder = decoder.with_rows(rows)
    weight = head.get("weight", decoder.head)
    if decoder.head is None and weight is not None:
        if not torch.equal(weight, own[decoder.embedding_name]):
            raise ValueError("expected an output head that equals the word embeddings, as in the decoder, got another.")
        weight = None
    if decoder.head is not None and not head and rows > old_rows:
        notes.append(
            f"the checkpoint has no output head: its {rows - old_rows} new row(s) are the mean of the others, as "
            "nobody trained them"
        )
    return Decoder(decoder.config, decoder.tensors | dict(own), weight, decoder.embedding_name, decoder.prefix)


def _choose_tokens(
    text: Any, decoder: Decoder, fields: Mapping[str, Any]
) -> tuple[dict[str, Any], PreTrainedTokenizerBase | None]:
    tokenizer = load_tokenizer(text)
    if tokenizer is None:
        if not {"image_token_id", "end_of_chunk_token_id"} <= set(fields):
            raise ValueError(
                f"expected a tokenizer beside the decoder {text}, got none: the ids of {IMAGE_TOKEN} and "
                f"{END_OF_CHUNK_TOKEN} are not known. Copy its files there."
            )
        return dict(fields), None
    if len(tokenizer) > decoder.config.vocab_size:
        raise ValueError(
            f"expected embeddings of {len(tokenizer)} tokens, as the tokenizer of {text} with the new ones has, got "
            f"{decoder.config.vocab_size} rows. Give the decoder that the checkpoint was trained with."
        )
    end, image = tokenizer.convert_tokens_to_ids([END_OF_CHUNK_TOKEN, IMAGE_TOKEN])
    return {"image_token_id": image, "end_of_chunk_token_id": end} | dict(fields), tokenizer


def _read_sizes(found: Mapping[str, Mapping[str, torch.Tensor]], media_width: int, width: int) -> dict[str, Any]:
    """What shapes tell of resampler and blocks."""
    resampler, blocks = found["resampler"], found["blocks"]
    layers = sorted({int(name.split(".")[0]) for name in blocks})
    first = f"{layers[0]}."
    heads = 8
    frames, media = resampler.get("frame_embs"), resampler.get("media_time_embs")
    return {
        "cross_attention_layers": layers,
        "resampler_depth": sum(name.endswith(".attention.to_q.weight") for name in resampler),
        "resampler_num_heads": heads,
        "resampler_head_dim": len(resampler["layers.0.attention.to_q.weight"]) // heads,
        "resampler_mult": len(resampler["layers.0.feed_forward.1.weight"]) // media_width,
        "num_latents": len(resampler["latents"]),
        "max_num_frames": None if frames is None else len(frames),
        "max_num_media": None if media is None else len(media),
        "cross_attention_num_heads": heads,
        "cross_attention_head_dim": len(blocks[first + "attention.to_q.weight"]) // heads,
        "cross_attention_mult": len(blocks[first + "feed_forward.1.weight"]) // width,
    }
