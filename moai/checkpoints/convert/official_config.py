"""MoAIConfig of an official-format checkpoint: sizes from tensor shapes, the rest from config.json.

The release hard-codes most sizes of MoAI-7B; its config.json is InternLM2's. Checkpoints of other sizes say what shapes
cannot (heads, scales) in extra fields: ``image_token_index``, ``mixer_heads``, ``plora_alpha``, ``vision``,
``compressor``. Where they are absent, the release's constants hold. :attr:`MoAIConfig.domain` is kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...models.moai.configuration_moai import MoAIConfig
from ...models.moai.internlm2 import AttentionSizes, build_llama_fields, derive_attention_sizes

VISION_PREFIX = "vit.vision_tower.vision_model."
COMPRESSOR_PREFIX = "moai_compressor."

#: Constants of the released code (ByungKwanLee/MoAI, moai/arch and moai/arch_moai.py).
RELEASED_MIXER_HEADS = 4
RELEASED_COMPRESSOR_HEAD_DIM = 64
CLIP_HEAD_DIM = 64
CLIP_336_GRID, RELEASED_GRID = 24, 35  # CLIP ViT-L/14-336's own table, and what the release resizes it to

_MIXER_KEY = re.compile(r"model\.layers\.(\d+)\.attention\.moai_")
_LAYER_NUMBER = re.compile(r"layers\.(\d+)\.")

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class OfficialSizes:
    """What the key rules need beside the configuration.

    Attributes:
        attention: Heads of the decoder.
        has_partial_lora: Whether the decoder's linears carry partial LoRA.
        grid: Patches per side of the target's position table.
        vocab_size: Rows of the target's embedding and head.
        mixer_layers: Zero-based decoder layers with a mixer.
    """

    attention: AttentionSizes
    has_partial_lora: bool
    grid: int
    vocab_size: int
    mixer_layers: tuple[int, ...]


def looks_official(shapes: Shapes) -> bool:
    """Whether tensor names are those of an official-format MoAI checkpoint."""
    return any(key.startswith(COMPRESSOR_PREFIX) for key in shapes) or any(_MIXER_KEY.match(key) for key in shapes)


def build_official_config(
    config: dict[str, Any],
    shapes: Shapes,
    *,
    tokenizer_image_token_id: int | None = None,
    image_size: int | None = None,
) -> tuple[MoAIConfig, OfficialSizes]:
    """Derive configuration and sizes.

    Args:
        config: The source's config.json.
        shapes: Shapes of the source's tensors by name.
        tokenizer_image_token_id: The tokenizer's id of ``<image>``; it decides, as in the release.
        image_size: Side of images in pixels; None takes the source's.

    Returns:
        The configuration and what the key rules need.

    Raises:
        ValueError: If a part of the model is absent, or shapes and config.json contradict each other.
    """
    _check_parts(shapes)
    attention = derive_attention_sizes(config, dict(shapes))
    embedding_rows = shapes["model.tok_embeddings.weight"][0]
    output_rows = shapes.get("output.weight", (embedding_rows,))[0]
    image_token_id = _image_token_id(config, tokenizer_image_token_id, embedding_rows, output_rows)
    vocab_size = max(output_rows, image_token_id + 1)
    vision, grid = _vision_fields(config.get("vision") or {}, shapes, image_size)
    mixer_layers = tuple(sorted({int(match[1]) for key in shapes if (match := _MIXER_KEY.match(key))}))
    plora_rank = next((shape[0] for key, shape in shapes.items() if key.endswith("Plora_A.weight")), 0)
    vision_source = config.get("vision") or {}
    moai_config = MoAIConfig(
        vision_config=vision,
        text_config=build_llama_fields(config, dict(shapes), attention) | {"vocab_size": vocab_size},
        compressor=_compressor_fields(config.get("compressor") or {}, shapes),
        mixer=_mixer_fields(config, shapes, mixer_layers),
        image_token_id=image_token_id,
        vision_feature_layer=int(vision_source.get("select_layer", -1)),
        vision_feature_select_strategy="default" if vision_source.get("drop_cls", True) else "full",
        plora_rank=plora_rank,
        # The release's alpha equals its rank (256).
        plora_alpha=float(config.get("plora_alpha", plora_rank or 1)),
        auxiliary_map_scale=1 / 255,
        tie_word_embeddings="output.weight" not in shapes,
        domain=config.get("domain"),
    )
    return moai_config, OfficialSizes(attention, bool(plora_rank), grid, vocab_size, mixer_layers)


def _check_parts(shapes: Shapes) -> None:
    parts = {
        "word embedding": "model.tok_embeddings.weight",
        "vision tower": VISION_PREFIX,
        "projector": "vision_proj.",
        "compressor": COMPRESSOR_PREFIX,
    }
    absent = [
        f"{part} ({prefix}...)" for part, prefix in parts.items() if not any(key.startswith(prefix) for key in shapes)
    ]
    if not any(_MIXER_KEY.match(key) for key in shapes):
        absent.append("mixers (model.layers.N.attention.moai_...)")
    if absent:
        raise ValueError(
            f"Expected an official-format MoAI checkpoint, got one without {', '.join(absent)}. A shard is missing, or "
            "this is a plain backbone: build a new model with MoAIForConditionalGeneration.from_backbones."
        )


def _image_token_id(config: dict[str, Any], from_tokenizer: int | None, embedding_rows: int, output_rows: int) -> int:
    """Id of the image token: the tokenizer's, as in the release; without a tokenizer the first free one."""
    if from_tokenizer is not None:
        return from_tokenizer
    declared = config.get("image_token_index")
    if declared is not None:
        return int(declared)
    return output_rows if embedding_rows <= output_rows else embedding_rows - 1


def _count_layers(shapes: Shapes, prefix: str) -> int:
    return 1 + max(int(_LAYER_NUMBER.search(key)[1]) for key in shapes if key.startswith(f"{prefix}layers."))


def _vision_fields(source: dict[str, Any], shapes: Shapes, image_size: int | None) -> tuple[dict[str, Any], int]:
    width, _, patch_size, _ = shapes[f"{VISION_PREFIX}embeddings.patch_embedding.weight"]
    rows = shapes[f"{VISION_PREFIX}embeddings.position_embedding.weight"][0]
    stored_grid = round((rows - 1) ** 0.5)
    image_size = image_size or source.get("image_size")
    if image_size:
        grid = int(image_size) // patch_size
    else:
        grid = int(source.get("grid") or (RELEASED_GRID if stored_grid == CLIP_336_GRID else stored_grid))
    num_heads = source.get("num_attention_heads") or max(1, width // CLIP_HEAD_DIM)
    fields = {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": shapes[f"{VISION_PREFIX}encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _count_layers(shapes, f"{VISION_PREFIX}encoder."),
        "num_attention_heads": int(num_heads),
        "patch_size": patch_size,
        "image_size": grid * patch_size,
        "hidden_act": source.get("hidden_act", "quick_gelu"),
        "layer_norm_eps": float(source.get("layer_norm_eps", 1e-5)),
        "projection_dim": int(source.get("projection_dim", 768)),
    }
    return fields, grid


def _compressor_fields(source: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    num_latents, width = shapes[f"{COMPRESSOR_PREFIX}latents"]
    inner = shapes[f"{COMPRESSOR_PREFIX}layers.0.0.to_q.weight"][0]
    head_dim = source.get("dim_head")
    if head_dim is None:
        head_dim = inner // int(source["heads"]) if source.get("heads") else RELEASED_COMPRESSOR_HEAD_DIM
    num_heads = int(source.get("heads") or inner // int(head_dim))
    if num_heads * int(head_dim) != inner:
        raise ValueError(
            f"config.json says {num_heads} compressor heads of {head_dim}, got to_q with {inner} rows. Correct "
            "`compressor.heads` or `compressor.dim_head` there."
        )
    return {
        "architecture": "perceiver",
        "num_latents": num_latents,
        "num_layers": _count_layers(shapes, COMPRESSOR_PREFIX),
        "num_heads": num_heads,
        "head_dim": int(head_dim),
        "feed_forward_multiplier": shapes[f"{COMPRESSOR_PREFIX}layers.0.1.1.weight"][0] / width,
    }


def _mixer_fields(config: dict[str, Any], shapes: Shapes, layers: tuple[int, ...]) -> dict[str, Any]:
    rank = next(shape[0] for key, shape in shapes.items() if key.endswith(".linear_q.0.weight"))
    return {
        "layers": layers,
        "num_heads": int(config.get("mixer_heads", RELEASED_MIXER_HEADS)),
        "rank": rank,
        "use_activation": True,
    }
