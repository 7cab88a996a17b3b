"""Official-format checkpoint folders made from our models: the conversion's inverse, written independently of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from moai import MoAIForConditionalGeneration

EXPERTS = {
    "image": ("moai_CA_img_aux", "moai_CA_img_lang", "moai_SA_img"),
    "language": ("moai_CA_lang_aux", "moai_CA_lang_img", "moai_SA_lang"),
}


def official_tensors(model: MoAIForConditionalGeneration) -> dict[str, torch.Tensor]:
    """Name and lay out a model's tensors as the released code does; the placeholder's row of the head is left out.

    Args:
        model: With a perceiver, Llama decoder, CLIP tower, and ``<image>`` as the vocabulary's last id.
    """
    body, config = model.model, model.config
    out: dict[str, torch.Tensor] = {}
    for name, tensor in body.vision_tower.state_dict().items():
        out[f"vit.vision_tower.vision_model.{name}"] = tensor
    for index, linear in ((0, body.multi_modal_projector.linear_1), (2, body.multi_modal_projector.linear_2)):
        out[f"vision_proj.{index}.weight"], out[f"vision_proj.{index}.bias"] = linear.weight, linear.bias
    out["model.tok_embeddings.weight"] = body.language_model.embed_tokens.weight
    out["model.norm.weight"] = body.language_model.norm.weight
    out["output.weight"] = model.lm_head.weight[: config.text_config.vocab_size - 1]
    for index, layer in enumerate(body.language_model.layers):
        prefix = f"model.layers.{index}."
        out[f"{prefix}attention_norm.weight"] = layer.input_layernorm.weight
        out[f"{prefix}ffn_norm.weight"] = layer.post_attention_layernorm.weight
        out |= _decoder_linears(prefix, layer, config.text_config)
    out |= _compressor_tensors(body.compressor)
    for ordinal, index in enumerate(config.mixer_config.layers):
        out |= _mixer_tensors(f"model.layers.{index}.attention.", body.mixers.layers[ordinal])
    return {name: tensor.detach().clone().contiguous() for name, tensor in out.items()}


def _parts(linear: Any) -> dict[str, torch.Tensor]:
    base = getattr(linear, "base_layer", linear)
    parts = {"Plora_main.weight": base.weight}
    if base.bias is not None:
        parts["Plora_main.bias"] = base.bias
    if base is not linear:
        parts |= {"Plora_A.weight": linear.update.lora_a, "Plora_B.weight": linear.update.lora_b}
    return parts


def _decoder_linears(prefix: str, layer: Any, text: Any) -> dict[str, torch.Tensor]:
    out = {}
    for name, linear in (
        ("attention.wo", layer.self_attn.o_proj),
        ("feed_forward.w1", layer.mlp.gate_proj),
        ("feed_forward.w2", layer.mlp.down_proj),
        ("feed_forward.w3", layer.mlp.up_proj),
    ):
        out |= {f"{prefix}{name}.{part}": tensor for part, tensor in _parts(linear).items()}
    query, key, value = (_parts(getattr(layer.self_attn, f"{letter}_proj")) for letter in "qkv")
    for part in query:
        if part == "Plora_A.weight":
            out[f"{prefix}attention.wqkv.{part}"] = query[part]
            continue
        rows, group = [], text.num_attention_heads // text.num_key_value_heads
        for head in range(text.num_key_value_heads):
            start = head * group * text.head_dim
            rows.append(query[part][start : start + group * text.head_dim])
            rows += [other[part][head * text.head_dim : (head + 1) * text.head_dim] for other in (key, value)]
        out[f"{prefix}attention.wqkv.{part}"] = torch.cat(rows)
    return out


def _compressor_tensors(compressor: Any) -> dict[str, torch.Tensor]:
    out = {"moai_compressor.latents": compressor.latents.weight}
    for index, layer in enumerate(compressor.stack.layers):
        attention, feed_forward = layer.attention, layer.feed_forward
        prefix = f"moai_compressor.layers.{index}."
        for name, norm in (
            ("0.norm_media", attention.norm_auxiliary),
            ("0.norm_latents", attention.norm_latents),
            ("1.0", feed_forward.norm),
        ):
            out[f"{prefix}{name}.weight"], out[f"{prefix}{name}.bias"] = norm.weight, norm.bias
        out[f"{prefix}0.to_q.weight"] = attention.to_query.weight
        out[f"{prefix}0.to_kv.weight"] = attention.to_key_value.weight
        out[f"{prefix}0.to_out.weight"] = attention.to_output.weight
        out[f"{prefix}1.1.weight"] = feed_forward.up.weight
        out[f"{prefix}1.3.weight"] = feed_forward.down.weight
    out["moai_compressor.norm.weight"], out["moai_compressor.norm.bias"] = compressor.norm.weight, compressor.norm.bias
    return out


def _mixer_tensors(prefix: str, mixer: Any) -> dict[str, torch.Tensor]:
    out = {}
    for stream, names in EXPERTS.items():
        for name, expert in zip(names, getattr(mixer, f"{stream}_experts"), strict=True):
            for letter, projection in zip("qkvo", (expert.query, expert.key, expert.value, expert.output), strict=True):
                out[f"{prefix}{name}.linear_{letter}.0.weight"] = projection.down
                out[f"{prefix}{name}.linear_{letter}.1.weight"] = projection.up
    for short, gate in (("img", mixer.image_gate), ("lang", mixer.language_gate)):
        out[f"{prefix}moai_GA_{short}.weight"], out[f"{prefix}moai_GA_{short}.bias"] = gate.weight, gate.bias
    return out


def official_config(model: MoAIForConditionalGeneration) -> dict[str, Any]:
    """The config.json of such a checkpoint: InternLM2's fields and what shapes cannot tell."""
    config = model.config
    text, vision = config.text_config, config.vision_config
    rope = dict(text.rope_parameters)
    scaling = None if rope["rope_type"] == "default" else {"type": rope["rope_type"], "factor": rope["factor"]}
    return {
        "model_type": "internlm2",
        "vocab_size": text.vocab_size - 1,
        "hidden_size": text.hidden_size,
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "bias": text.attention_bias,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": scaling,
        "max_position_embeddings": text.max_position_embeddings,
        "hidden_act": text.hidden_act,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "image_token_index": config.image_token_id,
        "mixer_heads": config.mixer["num_heads"],
        "plora_alpha": config.plora_alpha,
        "vision": {
            "num_attention_heads": vision.num_attention_heads,
            "image_size": vision.image_size,
            "hidden_act": vision.hidden_act,
            "layer_norm_eps": vision.layer_norm_eps,
            "select_layer": config.vision_feature_layer,
        },
        "compressor": {"heads": config.compressor["num_heads"], "dim_head": config.compressor["head_dim"]},
    }


def write_official_checkpoint(
    folder: Path,
    tensors: dict[str, torch.Tensor],
    config: dict[str, Any],
    *,
    suffix: str = "safetensors",
    num_shards: int = 1,
) -> Path:
    """Write a folder, with an index where there are several shards.

    Args:
        folder: To create.
        tensors: See :func:`official_tensors`.
        config: See :func:`official_config`.
        suffix: ``safetensors`` or ``bin``.
        num_shards: Weight files.
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names, weight_map = sorted(tensors), {}
    for index in range(num_shards):
        part = {name: tensors[name] for name in names[index::num_shards]}
        file = f"{stem}-{index + 1:05d}-of-{num_shards:05d}.{suffix}" if num_shards > 1 else f"{stem}.{suffix}"
        if suffix == "safetensors":
            save_file(part, folder / file)
        else:
            torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    if num_shards > 1:
        index = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / f"{stem}.{suffix}.index.json").write_text(index, encoding="utf-8")
    return folder


def write_release(folder: Path, num_shards: int = 2) -> Path:
    """A small checkpoint as MoAI-7B is published: sharded weights, config.json, tokenizer.model; and other files.

    Args:
        folder: To create.
        num_shards: Weight files.
    """
    from builders import build_tiny_config, build_tiny_model
    from pipeline_builders import TEXTS, VOCAB_SIZE

    from recipes.nano.tokenization_training import train_tokenizer

    tokenizer_folder = folder.with_name(f"{folder.name}-tokenizer")
    tokenizer = train_tokenizer(TEXTS, VOCAB_SIZE, tokenizer_folder)
    text = {"vocab_size": VOCAB_SIZE + 1, "max_position_embeddings": 2048}
    image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    compressor = {"architecture": "perceiver"}
    config = build_tiny_config(text=text, compressor=compressor, plora_rank=4, image_token_id=image_token_id)
    model = build_tiny_model(config=config)
    with torch.no_grad():
        model.lm_head.weight.mul_(8)  # choices that no rounding turns over
        for layer in model.model.language_model.layers:  # one fused linear: one inner side for all three
            attention = layer.self_attn
            for linear in (attention.k_proj, attention.v_proj):
                linear.update.lora_a.copy_(attention.q_proj.update.lora_a)
    write_official_checkpoint(folder, official_tensors(model), official_config(model), num_shards=num_shards)
    (folder / "tokenizer.model").write_bytes(
        (folder.with_name(f"{folder.name}-tokenizer") / "tokenizer.model").read_bytes()
    )
    (folder / "README.md").write_text("# MoAI-7B\n", encoding="utf-8")
    (folder / "figures").mkdir()
    (folder / "figures" / "config.json").write_text("{}", encoding="utf-8")
    (folder / "pytorch_model.bin").write_bytes(b"not to be fetched")
    return folder
