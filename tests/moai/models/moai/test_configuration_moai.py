"""MoAIConfig: defaults, every field checked, round trips."""

import json

import pytest
from builders import FAMILIES, IMAGE_TOKEN_ID, TINY_TEXT, TINY_VISION, build_tiny_config
from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig

from moai import MoAIConfig


def test_default_configuration_is_moai_7b_when_nothing_is_given() -> None:
    config = MoAIConfig()
    assert (config.vision_config.model_type, config.vision_config.hidden_size) == ("clip_vision_model", 1024)
    assert (config.text_config.model_type, config.text_config.num_key_value_heads) == ("llama", 8)
    assert config.num_image_tokens == 1225
    assert config.mixer["layers"] == [7, 15, 23, 31] and config.mixer["rank"] == 64
    assert config.compressor["num_latents"] == 64 and config.compressor["hidden_size"] == 4096


@pytest.mark.parametrize("family", FAMILIES)
def test_configuration_round_trips_when_saved(tmp_path, family: str) -> None:
    config = build_tiny_config(family, plora_rank=4, compressor={"architecture": "perceiver"}, mixer={"top_k": 2})
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, MoAIConfig)
    assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}
    assert type(loaded.text_config) is type(config.text_config) and loaded.text_config.model_type == family
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "moai"
    assert MoAIConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


def test_domain_is_kept_when_it_is_saved_and_absent_when_none(tmp_path) -> None:
    build_tiny_config(domain="drawings").save_pretrained(tmp_path / "some")
    build_tiny_config().save_pretrained(tmp_path / "none")
    assert AutoConfig.from_pretrained(tmp_path / "some").domain == "drawings"
    assert AutoConfig.from_pretrained(tmp_path / "none").domain is None
    with pytest.raises(ValueError, match="`domain` must be words or None, got"):
        build_tiny_config(domain=["drawings"])


def test_configuration_takes_ready_parts_when_given_objects() -> None:
    vision = CLIPVisionConfig(**{name: value for name, value in TINY_VISION.items() if name != "model_type"})
    text = LlamaConfig(**TINY_TEXT)
    config = MoAIConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN_ID)
    assert config.vision_config is vision and config.text_config is text
    assert config.num_image_tokens == 4 and config.mixer["hidden_size"] == 64
    assert config.get_text_config() is text


@pytest.mark.parametrize(
    ("depth", "layers"), [(32, [7, 15, 23, 31]), (8, [1, 3, 5, 7]), (3, [0, 1, 2]), (30, [6, 14, 21, 29])]
)
def test_mixers_are_spread_to_the_last_layer_when_none_are_named(depth: int, layers: list[int]) -> None:
    config = MoAIConfig(
        vision_config=TINY_VISION,
        text_config={"model_type": "llama"} | TINY_TEXT | {"num_hidden_layers": depth},
        image_token_id=IMAGE_TOKEN_ID,
    )
    assert config.mixer["layers"] == layers


def test_mixers_may_be_none_at_all_when_asked() -> None:
    assert build_tiny_config(mixer={"layers": []}).mixer["layers"] == []


@pytest.mark.parametrize(
    ("strategy", "vision", "tokens"),
    [
        ("default", {}, 4),
        ("full", {}, 5),
        ("full", {"model_type": "siglip_vision_model"}, 4),
        ("default", {"image_size": 56}, 16),
    ],
)
def test_image_tokens_are_counted_when_the_tower_is_known(strategy: str, vision: dict, tokens: int) -> None:
    assert build_tiny_config(vision=vision, vision_feature_select_strategy=strategy).num_image_tokens == tokens


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_token_id": 256}, "image_token_id.*256"),
        ({"image_token_id": -1}, "image_token_id"),
        ({"plora_rank": -1}, "plora_rank"),
        ({"mixer": {"layers": [4]}}, "depth 4"),
        ({"mixer": {"hidden_size": 32}}, "mixer.hidden_size.*64"),
        ({"mixer": {"experts": 3}}, "unknown field.*experts"),
        ({"mixer": {"num_heads": 5}}, "num_heads"),
        ({"compressor": {"hidden_size": 32}}, "compressor.hidden_size.*64"),
        ({"compressor": {"architecture": "mlp"}}, "encoder.*perceiver"),
        ({"vision_feature_select_strategy": "default", "vision": {"model_type": "siglip_vision_model"}}, "full"),
        ({"vision_feature_layer": 5}, "vision_feature_layer"),
        ({"vision_feature_layer": -4}, "vision_feature_layer"),
        ({"vision_feature_layer": [-1, 3]}, "vision_feature_layer.*-3 to 2"),
        ({"vision_feature_layer": []}, "vision_feature_layer"),
        ({"auxiliary_map_scale": 0.0}, "auxiliary_map_scale"),
        ({"num_image_tokens": 0}, "num_image_tokens"),
    ],
)
def test_configuration_names_the_field_when_it_is_wrong(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_tiny_config(**fields)


def test_configuration_names_the_families_when_the_decoder_is_foreign() -> None:
    with pytest.raises(ValueError, match=r"llama.*qwen3.*gpt2"):
        MoAIConfig(vision_config=TINY_VISION, text_config={"model_type": "gpt2"}, image_token_id=1)


@pytest.mark.parametrize("where", ["text", "outer"])
def test_embeddings_are_tied_when_either_configuration_says_so(where: str) -> None:
    fields = {"text": {"tie_word_embeddings": True}} if where == "text" else {"tie_word_embeddings": True}
    assert build_tiny_config(**fields).tie_word_embeddings
