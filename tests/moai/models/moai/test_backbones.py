"""New models around pretrained backbones, whose numbers must arrive untouched."""

from __future__ import annotations

import json

import pytest
import torch
from builders import TINY_TEXT, TINY_VISION, build_tiny_inputs
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from moai import MoAIForConditionalGeneration, MoAIProcessor
from moai.models.moai.backbone_processor import build_processor_from_backbones

VISION = {name: value for name, value in TINY_VISION.items() if name != "model_type"}
NEW = {"compressor": {"num_latents": 4, "num_heads": 2, "head_dim": 16}, "mixer": {"rank": 8, "layers": [1, 3]}}


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """Folders of a whole CLIP, a CLIP tower and a SigLIP tower, with the tensors each tower must end up with."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("towers")
    text = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 9,
    }
    models = {
        "clip": CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)),
        "clip_vision": CLIPVisionModel(CLIPVisionConfig(**VISION)),
        "siglip_vision": SiglipVisionModel(SiglipVisionConfig(**VISION)),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
    tensors = {name: getattr(model, "vision_model", model).state_dict() for name, model in models.items()}
    return folder, tensors, models


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    """Folders of causal models of every family, one of them tied, all in bfloat16."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("decoders")
    models = {}
    for name in ("llama", "mistral", "qwen2", "qwen3", "tied"):
        family = "llama" if name == "tied" else name
        config = AutoConfig.for_model(family, **TINY_TEXT, tie_word_embeddings=name == "tied")
        models[name] = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
        models[name].save_pretrained(folder / name)
    return folder, models


def assert_decoder_untouched(model: MoAIForConditionalGeneration, original, rows: int) -> None:
    ours = model.model.language_model.state_dict()
    for name, tensor in original.get_decoder().state_dict().items():
        found = ours.pop(name) if name in ours else ours.pop(name.replace("_proj.", "_proj.base_layer."))
        found = found[:rows] if name == "embed_tokens.weight" else found
        assert torch.equal(found.to(tensor.dtype), tensor), name
        assert torch.equal(found, tensor.to(found.dtype)), name
    assert not [name for name in ours if ".update.lora_" not in name]
    assert torch.equal(model.lm_head.weight[:rows].to(torch.bfloat16), original.lm_head.weight)


@pytest.mark.parametrize("text", ["llama", "mistral", "qwen2", "qwen3", "tied"])
def test_backbones_are_untouched_when_built_from_folders(towers, decoders, text):
    (vision_folder, tensors, _), (text_folder, originals) = towers, decoders
    rows = TINY_TEXT["vocab_size"]
    model = MoAIForConditionalGeneration.from_backbones(vision_folder / "clip_vision", text_folder / text, **NEW)
    for name, tensor in tensors["clip_vision"].items():
        assert torch.equal(model.model.vision_tower.state_dict()[name], tensor), name
    assert_decoder_untouched(model, originals[text], rows)
    assert model.config.image_token_id == rows
    assert model.get_input_embeddings().weight.shape[0] == model.lm_head.weight.shape[0] == rows + 1
    is_tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert is_tied == (text == "tied") == model.config.tie_word_embeddings
    with torch.no_grad():
        logits = model(**build_tiny_inputs(model.config)).logits
    assert torch.isfinite(logits).all()


def test_plain_text_logits_equal_the_backbones_when_no_image_is_given(towers, decoders):
    (vision_folder, _, _), (text_folder, _) = towers, decoders
    plain = AutoModelForCausalLM.from_pretrained(text_folder / "qwen3", dtype=torch.float32)
    model = MoAIForConditionalGeneration.from_backbones(
        vision_folder / "clip_vision", text_folder / "qwen3", dtype=torch.float32, **NEW
    )
    input_ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = plain(input_ids).logits
        found = model(input_ids).logits
    assert torch.allclose(found[..., :-1], expected, atol=1e-5)


def test_towers_are_untouched_when_of_other_kinds(towers, decoders):
    (vision_folder, tensors, _), (text_folder, _) = towers, decoders
    for name, strategy in (("clip", "default"), ("siglip_vision", "full")):
        model = MoAIForConditionalGeneration.from_backbones(vision_folder / name, text_folder / "llama", **NEW)
        state = model.model.vision_tower.state_dict()
        assert state.keys() == tensors[name].keys()
        assert all(torch.equal(state[key], tensor) for key, tensor in tensors[name].items())
        assert model.config.vision_feature_select_strategy == strategy
        assert model.config.num_image_tokens == (VISION["image_size"] // VISION["patch_size"]) ** 2


def test_loaded_models_stay_theirs_when_built_upon(towers, decoders):
    (_, tensors, models), (_, originals) = towers, decoders
    before = {name: tensor.clone() for name, tensor in originals["llama"].state_dict().items()}
    kind = type(originals["llama"].model.layers[0].self_attn)
    model = MoAIForConditionalGeneration.from_backbones(models["clip"], originals["llama"], plora_rank=4, **NEW)
    assert_decoder_untouched(model, originals["llama"], TINY_TEXT["vocab_size"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in originals["llama"].state_dict().items())
    assert type(originals["llama"].model.layers[0].self_attn) is kind
    assert originals["llama"].config.vocab_size == TINY_TEXT["vocab_size"]
    assert all(tensor.any() for name, tensor in tensors["clip"].items() if name.endswith("fc1.weight"))


def test_no_row_is_appended_when_the_placeholder_has_an_id(towers, decoders):
    (vision_folder, _, _), (text_folder, originals) = towers, decoders
    model = MoAIForConditionalGeneration.from_backbones(
        vision_folder / "clip_vision", text_folder / "llama", image_token_id=7, **NEW
    )
    assert model.config.text_config.vocab_size == TINY_TEXT["vocab_size"]
    assert_decoder_untouched(model, originals["llama"], TINY_TEXT["vocab_size"])


def test_dtype_is_kept_when_backbones_agree_and_asked_for_when_given(towers, decoders, tmp_path):
    (_, _, models), (text_folder, _) = towers, decoders
    CLIPVisionModel(models["clip_vision"].config).to(torch.bfloat16).save_pretrained(tmp_path / "tower")
    build = MoAIForConditionalGeneration.from_backbones
    assert build(tmp_path / "tower", text_folder / "llama", **NEW).dtype == torch.bfloat16
    assert build(tmp_path / "tower", text_folder / "llama", dtype="float32", **NEW).dtype == torch.float32


def test_new_parts_are_drawn_alive_when_built(towers, decoders):
    (vision_folder, _, _), (text_folder, _) = towers, decoders
    model = MoAIForConditionalGeneration.from_backbones(vision_folder / "clip_vision", text_folder / "llama", **NEW)
    mixer = model.model.mixers.layers[0]
    assert not mixer.image_gate.weight.any()
    factor = mixer.image_experts[0].query.down
    expected = mixer.image_experts[0].query.init_stds[0]
    assert factor.std().item() == pytest.approx(expected, rel=0.15)
    assert model.model.compressor.latents.weight.std().item() == pytest.approx(1.0, rel=0.2)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_model_survives_a_round_trip_when_built_from_backbones(towers, decoders, tmp_path):
    (vision_folder, _, _), (text_folder, _) = towers, decoders
    model = MoAIForConditionalGeneration.from_backbones(
        vision_folder / "clip", text_folder / "tied", plora_rank=4, **NEW
    )
    model.save_pretrained(tmp_path / "model")
    again = MoAIForConditionalGeneration.from_pretrained(tmp_path / "model")
    state = again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert again.lm_head.weight is again.get_input_embeddings().weight


def write_internlm2(folder, original) -> None:
    """A Llama's weights in InternLM2's own hub format: fused rows per key-value head."""
    config, decoder = original.config, original.model
    width = config.num_attention_heads // config.num_key_value_heads * config.head_dim
    tensors = {
        "model.tok_embeddings.weight": decoder.embed_tokens.weight,
        "model.norm.weight": decoder.norm.weight,
        "output.weight": original.lm_head.weight,
    }
    for index, layer in enumerate(decoder.layers):
        rows = []
        for head in range(config.num_key_value_heads):
            rows.append(layer.self_attn.q_proj.weight[head * width : (head + 1) * width])
            for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
                rows.append(projection.weight[head * config.head_dim : (head + 1) * config.head_dim])
        prefix = f"model.layers.{index}."
        tensors |= {
            f"{prefix}attention.wqkv.weight": torch.cat(rows),
            f"{prefix}attention.wo.weight": layer.self_attn.o_proj.weight,
            f"{prefix}feed_forward.w1.weight": layer.mlp.gate_proj.weight,
            f"{prefix}feed_forward.w2.weight": layer.mlp.down_proj.weight,
            f"{prefix}feed_forward.w3.weight": layer.mlp.up_proj.weight,
            f"{prefix}attention_norm.weight": layer.input_layernorm.weight,
            f"{prefix}ffn_norm.weight": layer.post_attention_layernorm.weight,
        }
    folder.mkdir()
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    names = ("hidden_size", "num_attention_heads", "num_key_value_heads", "rms_norm_eps", "max_position_embeddings")
    raw = {name: getattr(config, name) for name in names}
    raw |= {"model_type": "internlm2", "auto_map": {"AutoConfig": "configuration_internlm2.InternLM2Config"}}
    (folder / "config.json").write_text(json.dumps(raw | {"rope_theta": 10000.0, "bias": False}))


def test_internlm2_folder_is_untouched_when_its_rows_are_split(towers, decoders, tmp_path):
    (vision_folder, _, _), (_, originals) = towers, decoders
    write_internlm2(tmp_path / "internlm2", originals["llama"])
    model = MoAIForConditionalGeneration.from_backbones(
        vision_folder / "clip_vision", tmp_path / "internlm2", plora_rank=2, **NEW
    )
    assert_decoder_untouched(model, originals["llama"], TINY_TEXT["vocab_size"])


def test_building_fails_when_a_backbone_is_incomplete_or_foreign(towers, decoders, tmp_path):
    (vision_folder, _, _), (_, originals) = towers, decoders
    originals["llama"].model.save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match=r"lacks 1 weight\(s\).*lm_head"):
        MoAIForConditionalGeneration.from_backbones(vision_folder / "clip", tmp_path / "headless", **NEW)
    with pytest.raises(ValueError, match="one of the families"):
        MoAIForConditionalGeneration.from_backbones(vision_folder / "clip", vision_folder / "siglip_vision", **NEW)


def test_processor_and_model_agree_when_the_tokenizer_defines_the_placeholder(towers, golden_dir, tmp_path):
    """InternLM2's sentencepiece model (the reference set's) with a decoder of as many rows as it has pieces."""
    vision_folder, _, _ = towers
    vocabulary = json.loads((golden_dir / "moai" / "config.json").read_text())["vocab_size"]
    torch.manual_seed(2)
    fields = TINY_TEXT | {"vocab_size": vocabulary}
    original = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **fields))
    write_internlm2(tmp_path / "internlm2", original)
    (tmp_path / "internlm2" / "tokenizer.model").write_bytes((golden_dir / "moai" / "tokenizer.model").read_bytes())
    model = MoAIForConditionalGeneration.from_backbones(vision_folder / "clip", tmp_path / "internlm2", **NEW)
    processor = build_processor_from_backbones(vision_folder / "clip", tmp_path / "internlm2", model.config)
    assert isinstance(processor, MoAIProcessor)
    assert processor.image_token_id == model.config.image_token_id == vocabulary
    image = torch.zeros(28, 40, 3, dtype=torch.uint8).numpy()
    batch = processor(images=[image], text=processor.build_prompts(["What is this?"]), return_tensors="pt")
    with torch.no_grad():
        assert torch.isfinite(model(**batch).logits).all()
