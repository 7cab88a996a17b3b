"""Released Emu's key names to ours, and its sizes from shapes. Emu-I's LoRA is merged into the decoder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...checkpoints.io.tensor_folder import list_names
from .configuration_emu import EVA_CLIP_G, LLAMA_13B, T5_BASE_DECODER, EmuConfig

__all__ = ["EmuPlan", "build_config", "convert_emu_tensors", "looks_like_emu", "plan_conversion"]

#: What nobody computes with: the tower's last norm and CLIP head, the causal former's word table, computed tables.
_UNUSED = re.compile(
    r"visual\.(norm|head|fc_norm)\.(weight|bias)|cformer\.cformer\.embed_tokens\.weight"
    r"|decoder\.lm\..*rotary_emb\.inv_freq"
)
_JOINED = re.compile(r"visual\.blocks\.(\d+)\.attn\.qkv\.weight")
_LORA = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
_ADAPTED = "decoder.lm.base_model.model."
_TOWER = "model.vision_tower."
_RULES = (
    (re.compile(r"visual\.cls_token"), _TOWER + "embeddings.cls_token"),
    (re.compile(r"visual\.pos_embed"), _TOWER + "embeddings.position_embeddings"),
    (re.compile(r"visual\.patch_embed\.proj\.(weight|bias)"), _TOWER + r"embeddings.patch_embeddings.projection.\1"),
    (re.compile(r"visual\.blocks\.(\d+)\.norm1\.(weight|bias)"), _TOWER + r"layers.\1.layernorm_before.\2"),
    (re.compile(r"visual\.blocks\.(\d+)\.norm2\.(weight|bias)"), _TOWER + r"layers.\1.layernorm_after.\2"),
    (re.compile(r"visual\.blocks\.(\d+)\.attn\.([qv])_bias"), _TOWER + r"layers.\1.attention.\2_proj.bias"),
    (re.compile(r"visual\.blocks\.(\d+)\.attn\.proj\.(weight|bias)"), _TOWER + r"layers.\1.attention.o_proj.\2"),
    (re.compile(r"visual\.blocks\.(\d+)\.mlp\.(fc[12])\.(weight|bias)"), _TOWER + r"layers.\1.mlp.\2.\3"),
    (re.compile(r"ln_visual\.(weight|bias)"), r"model.vision_norm.\1"),
    (re.compile(r"cformer\.cformer\.(block\..+|final_layer_norm\.weight)"), r"model.causal_former.stack.\1"),
    (re.compile(r"cformer\.(causal_tokens|projection\.(?:weight|bias))"), r"model.causal_former.\1"),
    (re.compile(r"decoder\.lm\.model\.(.+)"), r"model.language_model.\1"),
    (re.compile(r"decoder\.lm\.lm_head\.weight"), "lm_head.weight"),
    (re.compile(r"decoder\.lm\.stu_regress_head\.weight"), "regression_head.weight"),
)
#: LLaMA's heads are so wide where no table tells; so are those of EVA-CLIP ViT-g.
_HEAD_DIM, _VISION_HEAD_DIM = 128, 88


def _plain(name: str) -> str:
    """A key without what DeepSpeed and LoRA put around it."""
    name = name.removeprefix("module.")
    if name.startswith(_ADAPTED):
        name = "decoder.lm." + name.removeprefix(_ADAPTED)
    return name.replace(".base_layer.", ".")


def looks_like_emu(names: Iterable[str]) -> bool:
    """Whether tensors of these names are an Emu's in the released layout."""
    plain = {_plain(name) for name in names}
    return {"cformer.causal_tokens", "ln_visual.weight", "decoder.lm.stu_regress_head.weight"} <= plain


@dataclass(frozen=True)
class EmuPlan:
    """What becomes of each key.

    Attributes:
        targets: Source -> our names; three for joined queries, keys and values.
        lora: Source of a weight -> those of the LoRA's two matrices that are added to it.
        unused: Sources that nobody computes with.
    """

    targets: dict[str, tuple[str, ...]]
    lora: dict[str, tuple[str, str]]
    unused: tuple[str, ...]

    def convert(self, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """One of the source's tensors under our names, its LoRA left out."""
        targets = self.targets[name]
        return dict(zip(targets, tensor.chunk(len(targets)), strict=True))


def plan_conversion(names: Iterable[str]) -> EmuPlan:
    """Find a place for each key.

    Raises:
        ValueError: Keys have none; the message names them.
    """
    names = list(names)
    by_plain = {_plain(name): name for name in names}
    targets, lora, unused, unknown = {}, {}, [], []
    for plain, name in by_plain.items():
        if _UNUSED.fullmatch(plain):
            unused.append(name)
        elif match := _LORA.fullmatch(plain):
            base, ending = f"{match[1]}.weight", plain.removeprefix(f"{match[1]}.lora_{match[2]}")
            pair = [f"{match[1]}.lora_{side}{ending}" for side in "AB"]
            if {base, *pair} <= set(by_plain):
                lora[by_plain[base]] = (by_plain[pair[0]], by_plain[pair[1]])
            else:
                unknown.append(name)
        elif match := _JOINED.fullmatch(plain):
            targets[name] = tuple(f"{_TOWER}layers.{match[1]}.attention.{part}_proj.weight" for part in "qkv")
        else:
            new = next((match.expand(to) for rule, to in _RULES if (match := rule.fullmatch(plain))), None)
            if new is None:
                unknown.append(name)
            else:
                targets[name] = (new,)
    if unknown:
        raise ValueError(
            f"expected the keys of an Emu (visual.*, cformer.*, decoder.lm.*), got {len(unknown)} without a place: "
            f"{list_names(sorted(unknown))}. Check where the file comes from."
        )
    return EmuPlan(targets, lora, tuple(sorted(unused)))


def convert_emu_tensors(
    read: Callable[[str], torch.Tensor], plan: EmuPlan, lora_scale: float = 1.0
) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors by our names, one after the other.

    Args:
        read: A source's tensor.
        plan: From :func:`plan_conversion`.
        lora_scale: ``lora_alpha / r``; released Emu-I: 16 / 16.
    """
    for source in plan.targets:
        tensor = read(source)
        if source in plan.lora:
            down, up = (read(name).float() for name in plan.lora[source])
            tensor = (tensor.float() + lora_scale * (up @ down)).to(tensor.dtype)
        yield from plan.convert(source, tensor).items()


def build_config(
    shapes: Mapping[str, tuple[int, ...]],
    *,
    num_vision_heads: int | None = None,
    num_text_heads: int | None = None,
    relative_attention_max_distance: int = 128,
    **fields: Any,
) -> EmuConfig:
    """The configuration of released weights.

    Args:
        shapes: By key.
        num_vision_heads: Shapes do not tell; None = heads of 88, as in the released model.
        num_text_heads: None = as the table of rotary frequencies tells, else heads of 128.
        relative_attention_max_distance: Of the causal former; shapes do not tell.
        **fields: Other fields of :class:`EmuConfig`, which win.

    Raises:
        ValueError: A key is missing, or heads do not divide a width.
    """
    by_plain = {_plain(name): tuple(shape) for name, shape in shapes.items()}

    def size(name: str) -> tuple[int, ...]:
        if name not in by_plain:
            raise ValueError(f"expected {name} among the weights of an Emu, got none. Fetch the file again.")
        return by_plain[name]

    def count(prefix: str, suffix: str) -> int:
        return sum(name.startswith(prefix) and name.endswith(suffix) for name in by_plain)

    width, _, patch, _ = size("visual.patch_embed.proj.weight")
    side = round((size("visual.pos_embed")[1] - 1) ** 0.5)
    vision = EVA_CLIP_G | {
        "hidden_size": width,
        "intermediate_size": size("visual.blocks.0.mlp.fc1.weight")[0],
        "num_hidden_layers": count("visual.blocks.", ".attn.qkv.weight"),
        "num_attention_heads": _count_heads("num_vision_heads", width, num_vision_heads, _VISION_HEAD_DIM),
        "patch_size": patch,
        "image_size": side * patch,
    }
    block = "cformer.cformer.block.0.layer."
    buckets, former_heads = size(f"{block}0.SelfAttention.relative_attention_bias.weight")
    inner, former_width = size(f"{block}0.SelfAttention.q.weight")
    former = T5_BASE_DECODER | {
        "d_model": former_width,
        "d_kv": inner // former_heads,
        "d_ff": size(f"{block}2.DenseReluDense.wi.weight")[0],
        "num_layers": count("cformer.cformer.block.", ".SelfAttention.q.weight"),
        "num_heads": former_heads,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": relative_attention_max_distance,
    }
    rows, hidden = size("decoder.lm.model.embed_tokens.weight")
    layer = "decoder.lm.model.layers.0."
    table = by_plain.get(f"{layer}self_attn.rotary_emb.inv_freq")
    head_dim = _HEAD_DIM if table is None else 2 * table[0]
    heads = _count_heads("num_text_heads", hidden, num_text_heads, head_dim)
    text = LLAMA_13B | {
        "vocab_size": rows,
        "hidden_size": hidden,
        "intermediate_size": size(f"{layer}mlp.gate_proj.weight")[0],
        "num_hidden_layers": count("decoder.lm.model.layers.", ".self_attn.q_proj.weight"),
        "num_attention_heads": heads,
        "num_key_value_heads": size(f"{layer}self_attn.k_proj.weight")[0] * heads // hidden,
        "pad_token_id": fields.pop("pad_token_id", LLAMA_13B["pad_token_id"]),
    }
    return EmuConfig(
        vision_config={"model_type": "beit"} | vision,
        causal_former_config={"model_type": "t5"} | former,
        text_config={"model_type": "llama"} | text,
        **{"num_image_tokens": size("cformer.causal_tokens")[1], "tie_word_embeddings": False} | fields,
    )


def _count_heads(name: str, width: int, given: int | None, head_dim: int) -> int:
    heads = given or width // head_dim
    if heads < 1 or width % heads or (given is None and width % head_dim):
        raise ValueError(
            f"expected `{name}` of which the width {width} is a multiple, got {given or f'heads of {head_dim}'}. "
            "Shapes do not tell it: give it."
        )
    return heads
