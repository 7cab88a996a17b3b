"""Conversion of official-format folders of many shapes: the converted model computes what the original did."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
import torch
from builders import build_tiny_inputs, build_tiny_model
from golden_outputs import GoldenMoAI, convert_golden
from official_checkpoints import official_config, official_tensors, write_official_checkpoint

from moai import MoAIForConditionalGeneration, MoAIProcessor
from moai.checkpoints.convert import available_conversions, convert

PERCEIVER = {"architecture": "perceiver"}
CASES = {
    "grouped heads": {},
    "one key-value head": {"text": {"num_key_value_heads": 1}},
    "as many key-value heads as heads": {"text": {"num_key_value_heads": 4}},
    "eight heads on two": {"text": {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8}},
    "biases": {"text": {"attention_bias": True}},
    "no partial lora": {"plora_rank": 0},
    "alpha other than rank": {"plora_rank": 3, "plora_alpha": 12.0},
    "mixers every two layers": {"text": {"num_hidden_layers": 6}, "mixer": {"layers": [1, 3, 5], "rank": 5}},
    "mixers in uneven places": {"mixer": {"layers": [0, 1, 3], "num_heads": 2}},
    "other compressor": {
        "compressor": {
            "num_latents": 3,
            "num_layers": 3,
            "num_heads": 3,
            "head_dim": 8,
            "feed_forward_multiplier": 2.0,
        }
    },
    "dynamic rope": {
        "text": {
            "max_position_embeddings": 6,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 5000.0, "factor": 2.5},
        }
    },
    "linear rope": {"text": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0}}},
    "penultimate vision layer": {"vision": {"num_hidden_layers": 3}, "vision_feature_layer": -2},
    "other vision": {"vision": {"hidden_size": 48, "num_attention_heads": 3, "image_size": 24, "patch_size": 8}},
}


def build_original(**fields) -> MoAIForConditionalGeneration:
    compressor = PERCEIVER | fields.pop("compressor", {})
    text = {"vocab_size": 256} | fields.pop("text", {})
    fields = {"plora_rank": 4, "plora_alpha": 4.0} | fields
    model = build_tiny_model(compressor=compressor, text=text, **fields)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:  # born 0 or 1: a swap of two would go unseen
                parameter.add_(torch.randn_like(parameter) * 0.1)
        if model.config.plora_rank:
            for layer in model.model.language_model.layers:  # one fused linear: one inner side for all three
                attention = layer.self_attn
                for linear in (attention.k_proj, attention.v_proj):
                    linear.update.lora_a.copy_(attention.q_proj.update.lora_a)
    return model


def assert_same_logits(original: MoAIForConditionalGeneration, folder) -> MoAIForConditionalGeneration:
    converted = MoAIForConditionalGeneration.from_pretrained(folder)
    inputs = build_tiny_inputs(original.config)
    with torch.no_grad():
        expected, found = original(**inputs).logits, converted(**inputs).logits
    assert torch.equal(found[..., : expected.shape[-1] - 1], expected[..., :-1])
    return converted


@pytest.mark.parametrize("case", CASES)
def test_conversion_keeps_logits_when_shapes_vary(tmp_path, case):
    original = build_original(**CASES[case])
    source = write_official_checkpoint(tmp_path / "official", official_tensors(original), official_config(original))
    report = convert(source, tmp_path / "ours")
    converted = assert_same_logits(original, tmp_path / "ours")
    assert converted.config.auxiliary_map_scale == 1 / 255
    assert report.num_source_tensors == len(official_tensors(original))
    assert report.num_parameters == sum(tensor.numel() for tensor in original.state_dict().values())
    assert sum(report.families.values()) == report.num_parameters
    assert json.loads(json.dumps(report.to_dict()))["kind"] in available_conversions()


@pytest.mark.parametrize(("suffix", "num_shards"), [("safetensors", 3), ("bin", 1), ("bin", 2)])
def test_conversion_keeps_logits_when_files_vary(tmp_path, suffix, num_shards):
    original = build_original()
    source = write_official_checkpoint(
        tmp_path / "official",
        official_tensors(original),
        official_config(original),
        suffix=suffix,
        num_shards=num_shards,
    )
    convert(source, tmp_path / "ours", kind="official-moai")
    assert_same_logits(original, tmp_path / "ours")


@pytest.mark.parametrize("domain", ["drawings", None])
def test_conversion_keeps_the_domain_when_there_is_one(tmp_path, domain):
    original = build_original()
    config = official_config(original) | ({} if domain is None else {"domain": domain})
    convert(write_official_checkpoint(tmp_path / "official", official_tensors(original), config), tmp_path / "ours")
    assert assert_same_logits(original, tmp_path / "ours").config.domain == domain


def test_conversion_writes_shards_when_they_must_be_small(tmp_path):
    original = build_original()
    source = write_official_checkpoint(tmp_path / "official", official_tensors(original), official_config(original))
    report = convert(source, tmp_path / "ours", shard_bytes=100_000, kind="official-moai")
    assert len(report.files) > 2
    assert all((tmp_path / "ours" / file).stat().st_size < 150_000 for file in report.files)
    assert_same_logits(original, tmp_path / "ours")


def test_conversion_reads_sizes_from_shapes_when_config_is_plain_internlm2(tmp_path):
    """The published config.json has none of the extra fields; the release's constants hold then."""
    original = build_original(
        text={"num_key_value_heads": 1},
        vision={"hidden_size": 128, "num_attention_heads": 2, "image_size": 42},
        compressor={"num_heads": 2, "head_dim": 64},
    )
    config = official_config(original)
    for name in ("image_token_index", "mixer_heads", "plora_alpha", "vision", "compressor", "num_key_value_heads"):
        config.pop(name)
    source = write_official_checkpoint(tmp_path / "official", official_tensors(original), config)
    convert(source, tmp_path / "ours", kind="official-moai")
    assert_same_logits(original, tmp_path / "ours")


def test_conversion_fills_the_placeholder_row_when_the_embedding_lacks_it(tmp_path):
    original = build_original()
    tensors = official_tensors(original)
    rows = tensors["output.weight"].shape[0]
    tensors["model.tok_embeddings.weight"] = tensors["model.tok_embeddings.weight"][:rows].contiguous()
    source = write_official_checkpoint(tmp_path / "official", tensors, official_config(original))
    convert(source, tmp_path / "ours", kind="official-moai")
    assert_same_logits(original, tmp_path / "ours")


def test_conversion_resizes_the_position_table_when_another_image_size_is_asked(tmp_path):
    original = build_original()
    source = write_official_checkpoint(tmp_path / "official", official_tensors(original), official_config(original))
    report = convert(source, tmp_path / "ours", image_size=56, kind="official-moai")
    converted = MoAIForConditionalGeneration.from_pretrained(tmp_path / "ours")
    assert converted.config.num_image_tokens == 16
    assert converted.model.vision_tower.embeddings.position_embedding.weight.shape[0] == 17
    assert any("resized" in note for note in report.notes)


def test_conversion_casts_when_a_dtype_is_asked(tmp_path):
    original = build_original()
    source = write_official_checkpoint(tmp_path / "official", official_tensors(original), official_config(original))
    report = convert(source, tmp_path / "ours", dtype="bfloat16")
    assert report.dtype == "bfloat16"
    assert MoAIForConditionalGeneration.from_pretrained(tmp_path / "ours").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tensors: tensors.pop("model.layers.1.feed_forward.w3.Plora_B.weight"), "mlp.up_proj.update.lora_b"),
        (lambda tensors: tensors.pop("moai_compressor.norm.bias"), "model.compressor.norm.bias"),
        (lambda tensors: tensors.pop("model.layers.3.attention.moai_GA_img.bias"), "image_gate.bias"),
        (lambda tensors: tensors.update({"model.layers.0.attention.extra.weight": torch.ones(2)}), "attention.extra"),
        (lambda tensors: tensors.update({"vit.vision_tower.vision_model.head.weight": torch.ones(2)}), "head.weight"),
        (lambda tensors: tensors.update({"vision_proj.2.bias": torch.ones(3)}), "vision_proj.2.bias"),
        (lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("vit.")], "vision tower"),
    ],
)
def test_conversion_names_the_key_and_writes_nothing_when_keys_do_not_fit(tmp_path, change, named):
    original = build_original()
    tensors = official_tensors(original)
    change(tensors)
    source = write_official_checkpoint(tmp_path / "official", tensors, official_config(original))
    with pytest.raises(ValueError, match=named.replace(".", r"\.")):
        convert(source, tmp_path / "ours", kind="official-moai")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["official"]


def test_conversion_tells_both_numbers_when_heads_do_not_fit(tmp_path):
    original = build_original()
    config = official_config(original) | {"num_key_value_heads": 4}
    source = write_official_checkpoint(tmp_path / "official", official_tensors(original), config)
    with pytest.raises(ValueError, match=r"192 wqkv rows, got 128"):
        convert(source, tmp_path / "ours", kind="official-moai")


def test_conversion_refuses_when_the_output_exists(tmp_path):
    original = build_original()
    source = write_official_checkpoint(tmp_path / "official", official_tensors(original), official_config(original))
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        convert(source, tmp_path / "ours", kind="official-moai")
    assert (tmp_path / "ours" / "precious.txt").read_text() == "mine"
    convert(source, tmp_path / "ours", force=True, kind="official-moai")
    assert not (tmp_path / "ours" / "precious.txt").exists()
    assert_same_logits(original, tmp_path / "ours")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["official", "ours"]


class Payload:
    """Something that only unpickling arbitrary code could read."""

    def __reduce__(self):
        return (print, ("code ran",))


def test_conversion_refuses_when_a_file_needs_unpickling(tmp_path, capsys):
    original = build_original()
    source = write_official_checkpoint(
        tmp_path / "official", official_tensors(original), official_config(original), suffix="bin"
    )
    torch.save({"weight": Payload()}, source / "pytorch_model.bin")
    with pytest.raises(ValueError, match="weights_only"):
        convert(source, tmp_path / "ours", kind="official-moai")
    (source / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Payload()}))
    with pytest.raises(ValueError, match="weights_only"):
        convert(source, tmp_path / "ours")
    assert "code ran" not in capsys.readouterr().out


def test_conversion_names_the_shard_when_one_is_missing(tmp_path):
    original = build_original()
    source = write_official_checkpoint(
        tmp_path / "official", official_tensors(original), official_config(original), num_shards=3
    )
    (source / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match="model-00002-of-00003"):
        convert(source, tmp_path / "ours")


def test_convert_says_what_it_can_when_the_source_is_foreign(tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "plain").mkdir()
    save_file({"model.embed_tokens.weight": torch.ones(4, 4)}, tmp_path / "plain" / "model.safetensors")
    with pytest.raises(ValueError, match=r"official-moai.*from_backbones"):
        convert(tmp_path / "plain", tmp_path / "ours")
    with pytest.raises(ValueError, match="does not exist"):
        convert(tmp_path / "nowhere", tmp_path / "ours")
    with pytest.raises(ValueError, match="`dtype` must be"):
        convert(tmp_path / "plain", tmp_path / "ours", dtype="int7")


@pytest.fixture(scope="module")
def golden(golden_dir) -> GoldenMoAI:
    return GoldenMoAI(golden_dir / "moai")


def test_golden_checkpoint_keeps_its_dtype_and_config_when_converted(golden):
    folder = convert_golden(golden.folder)
    model = MoAIForConditionalGeneration.from_pretrained(folder)
    expected = golden.config
    assert model.dtype == torch.float16
    assert list(model.config.mixer_config.layers) == expected["mixer_layers"]
    assert model.config.mixer["rank"] == expected["mixer_rank"]
    assert model.config.plora_rank == expected["plora_rank"]
    assert model.config.image_token_id == expected["image_token_index"]
    assert model.config.compressor["num_latents"] == expected["compressor"]["num_latents"]
    assert model.config.compressor["head_dim"] == expected["compressor"]["dim_head"]
    assert model.config.text_config.num_key_value_heads == expected["num_key_value_heads"]
    assert model.config.vision_config.image_size == expected["vision"]["image_size"]


def test_golden_processor_gives_the_releases_ids_and_pixels_when_loaded(golden):
    folder = convert_golden(golden.folder)
    processor = MoAIProcessor.from_pretrained(folder)
    assert processor.image_token_id == golden.config["image_token_index"]
    assert processor.num_image_tokens == golden.num_patches
    mean = torch.tensor(golden.config["image_mean_255"]).view(1, 3, 1, 1)
    std = torch.tensor(golden.config["image_std_255"]).view(1, 3, 1, 1)
    images = golden.full["images_uint8"]
    prompt = golden.fixtures["external_results_for_A_B"][0]["prompt"]
    batch = processor(
        images=list(images.permute(0, 2, 3, 1).numpy()), text=processor.build_prompts([prompt] * len(images))
    )
    assert torch.allclose(batch["pixel_values"], (images.float() - mean) / std, atol=1e-4)


def test_converted_folder_is_complete_when_copied_elsewhere(golden, tmp_path):
    copy = shutil.copytree(convert_golden(golden.folder), tmp_path / "copy")
    names = {path.name for path in copy.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.model"} <= names
    assert all(path.stat().st_mode & 0o044 for path in copy.iterdir() if path.is_file())
    assert MoAIProcessor.from_pretrained(copy).auxiliary_map_scale == pytest.approx(1 / 255)
