"""Conversion of InternLM2's tensors and configuration to those of a Hugging Face Llama.

InternLM2 (arXiv 2403.17297) is a Llama with other names and one fused projection: the rows of ``wqkv`` stand per
key-value head, its query heads first, then its key, then its value. Partial LoRA (InternLM-XComposer2, arXiv
2401.16420) adds ``Plora_A``, ``Plora_B`` to every linear; the released MoAI calls the linear itself ``Plora_main``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch

#: name in InternLM2 -> name in Llama; ``wqkv`` is split, see :func:`split_fused_rows`
LINEAR_NAMES = {
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
}
NORM_NAMES = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
FUSED = "attention.wqkv"
FUSED_PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

_LAYER_KEY = re.compile(r"model\.layers\.(\d+)\.(.+)")
_LINEAR_KEY = re.compile(
    r"(attention\.(?:wqkv|wo)|feed_forward\.w[123])\.(Plora_A\.weight|Plora_B\.weight|(?:Plora_main\.)?(?:weight|bias))"
)


@dataclass(frozen=True)
class AttentionSizes:
    """Heads of a decoder.

    Attributes:
        num_heads: Query heads.
        num_key_value_heads: Key-value heads; divides ``num_heads``.
        head_dim: Width of one head.
    """

    num_heads: int
    num_key_value_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        if self.num_key_value_heads < 1 or self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"Expected num_key_value_heads to divide num_attention_heads, got {self.num_key_value_heads} and "
                f"{self.num_heads}. Check both in the source's config.json."
            )

    @property
    def fused_rows(self) -> int:
        """Rows of ``wqkv``."""
        return (self.num_heads + 2 * self.num_key_value_heads) * self.head_dim


def split_fused_rows(fused: torch.Tensor, sizes: AttentionSizes) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split the rows of ``wqkv`` (a weight, a bias or a ``Plora_B``) into query, key and value rows.

    Args:
        fused: ``(fused_rows, ...)``.
        sizes: Heads.

    Returns:
        ``(num_heads * head_dim, ...)`` and twice ``(num_key_value_heads * head_dim, ...)``.

    Raises:
        ValueError: If the rows do not fit the heads.
    """
    if fused.shape[0] != sizes.fused_rows:
        raise ValueError(
            f"Expected wqkv with {sizes.fused_rows} rows for {sizes.num_heads} query and {sizes.num_key_value_heads} "
            f"key-value heads of {sizes.head_dim}, got {fused.shape[0]}. Check the heads in the source's config.json."
        )
    group = sizes.num_heads // sizes.num_key_value_heads
    # (kv heads, group + 2, head_dim, ...)
    rows = fused.unflatten(0, (sizes.num_key_value_heads, group + 2, sizes.head_dim))
    query, key, value = rows[:, :group], rows[:, group : group + 1], rows[:, group + 1 :]
    return tuple(part.flatten(0, 2).contiguous() for part in (query, key, value))


def convert_decoder_tensor(
    key: str,
    tensor: torch.Tensor,
    sizes: AttentionSizes,
    *,
    prefix: str = "model.language_model.",
    has_partial_lora: bool = False,
) -> dict[str, torch.Tensor] | None:
    """Rename and, for ``wqkv``, split one decoder tensor.

    Args:
        key: Its InternLM2 name.
        tensor: Its values; meta tensors give names and shapes only.
        sizes: Heads of the decoder.
        prefix: Put in front of the decoder's names; the head is always ``lm_head``.
        has_partial_lora: Whether the target's linears are wrapped (``q_proj.base_layer.weight``).

    Returns:
        Target names and tensors; empty for a buffer the target computes itself; None for a key that is not the
        decoder's.
    """
    top_level = {
        "model.tok_embeddings.weight": f"{prefix}embed_tokens.weight",
        "model.norm.weight": f"{prefix}norm.weight",
        "output.weight": "lm_head.weight",
    }
    if key in top_level:
        return {top_level[key]: tensor}
    match = _LAYER_KEY.fullmatch(key)
    if match is None:
        return None
    layer, rest = f"{prefix}layers.{match[1]}.", match[2]
    if rest == "attention.rotary_emb.inv_freq":
        return {}
    for old, new in NORM_NAMES.items():
        if rest == f"{old}.weight":
            return {f"{layer}{new}.weight": tensor}
    linear = _LINEAR_KEY.fullmatch(rest)
    if linear is None:
        return None
    name, part = linear[1], linear[2]
    suffix = _target_suffix(part, has_partial_lora)
    if name != FUSED:
        return {f"{layer}{LINEAR_NAMES[name]}.{suffix}": tensor}
    # All three share the inner side of the update; its outer side is split like the weight.
    parts = (tensor,) * 3 if part == "Plora_A.weight" else split_fused_rows(tensor, sizes)
    return {f"{layer}{new}.{suffix}": values for new, values in zip(FUSED_PARTS, parts, strict=True)}


def _target_suffix(part: str, has_partial_lora: bool) -> str:
    if part.startswith("Plora_A"):
        return "update.lora_a"
    if part.startswith("Plora_B"):
        return "update.lora_b"
    kind = part.removeprefix("Plora_main.")
    return f"base_layer.{kind}" if has_partial_lora else kind


def derive_attention_sizes(config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> AttentionSizes:
    """Read the heads from config.json and check them against the shapes; what is absent follows from the shapes.

    Args:
        config: The source's config.json.
        shapes: Shapes of the source's tensors by name.

    Returns:
        The heads.

    Raises:
        ValueError: If config.json and shapes contradict each other.
    """
    hidden_size = shapes["model.tok_embeddings.weight"][1]
    rows = next((shape[0] for key, shape in shapes.items() if _is_fused_weight(key)), None)
    if rows is None:
        raise ValueError(
            "Expected tensors named model.layers.N.attention.wqkv..., got none. Is this an InternLM2 checkpoint?"
        )
    num_heads = int(config.get("num_attention_heads", 32))
    head_dim = int(config.get("head_dim") or hidden_size // num_heads)
    num_key_value_heads = config.get("num_key_value_heads")
    if num_key_value_heads is None:
        num_key_value_heads = (rows // head_dim - num_heads) // 2
    sizes = AttentionSizes(num_heads, int(num_key_value_heads), head_dim)
    if sizes.fused_rows != rows:
        raise ValueError(
            f"config.json says {num_heads} query and {num_key_value_heads} key-value heads of {head_dim}, that is "
            f"{sizes.fused_rows} wqkv rows, got {rows}. Correct num_attention_heads or num_key_value_heads there."
        )
    return sizes


def _is_fused_weight(key: str) -> bool:
    return f".{FUSED}." in key and key.endswith(("wqkv.weight", "Plora_main.weight"))


def build_llama_fields(
    config: dict[str, Any], shapes: dict[str, tuple[int, ...]], sizes: AttentionSizes
) -> dict[str, Any]:
    """Fields of the LlamaConfig that computes what the InternLM2 checkpoint computes.

    Args:
        config: The source's config.json.
        shapes: Shapes of the source's tensors by name.
        sizes: Heads, see :func:`derive_attention_sizes`.

    Returns:
        Keyword arguments of ``LlamaConfig`` except ``vocab_size``.
    """
    layers = {int(match[1]) for key in shapes if (match := _LAYER_KEY.fullmatch(key))}
    gate = next(shape for key, shape in shapes.items() if ".feed_forward.w1." in key and "Plora_A" not in key)
    return {
        "model_type": "llama",
        "hidden_size": shapes["model.tok_embeddings.weight"][1],
        "intermediate_size": gate[0],
        "num_hidden_layers": max(layers) + 1,
        "num_attention_heads": sizes.num_heads,
        "num_key_value_heads": sizes.num_key_value_heads,
        "head_dim": sizes.head_dim,
        "hidden_act": config.get("hidden_act", "silu"),
        "max_position_embeddings": int(config.get("max_position_embeddings", 2048)),
        "rms_norm_eps": float(config.get("rms_norm_eps", 1e-6)),
        "rope_parameters": build_rope_parameters(config),
        "attention_bias": any(".attention." in key and key.endswith(".bias") and ".w" in key for key in shapes),
        "mlp_bias": any(".feed_forward." in key and key.endswith(".bias") for key in shapes),
        "tie_word_embeddings": "output.weight" not in shapes,
        "bos_token_id": config.get("bos_token_id", 1),
        "eos_token_id": config.get("eos_token_id", 2),
        # A padding row of an embedding gets no gradient; InternLM2 pads with </s>, which must learn.
        "pad_token_id": None,
    }


def build_rope_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """Turn InternLM2's ``rope_theta`` and ``rope_scaling`` into transformers' ``rope_parameters``.

    Raises:
        ValueError: For a kind of scaling InternLM2 does not have.
    """
    theta, scaling = float(config.get("rope_theta", 10000.0)), config.get("rope_scaling")
    if not scaling:
        return {"rope_type": "default", "rope_theta": theta}
    kind = scaling.get("type") or scaling.get("rope_type")
    if kind not in ("dynamic", "linear"):
        raise ValueError(f"`rope_scaling.type` must be 'dynamic' or 'linear', got {kind!r}. Check config.json.")
    return {"rope_type": kind, "rope_theta": theta, "factor": float(scaling.get("factor", 1.0))}
