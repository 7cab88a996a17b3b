"""Checkpoints of the model: saving, loading, new parts, resized and tied embeddings, disk offload."""

from typing import Any

import pytest
import torch
from builders import IMAGE_TOKEN_ID, build_tiny_config, build_tiny_inputs, build_tiny_model, real_word_logits

from compressor import LatentTokens
from mixer import Gate, LowRankProjection
from moai import MoAIForConditionalGeneration
from moai.models.moai.partial_lora import LowRankUpdate

NUM_WORDS, NUM_AUXILIARY = (5, 3, 9), (6, 0, 2)


def without_dtype(fields: Any) -> Any:
    if not isinstance(fields, dict):
        return fields
    names = fields.keys() - {"dtype", "_name_or_path", "architectures", "transformers_version"}
    return {name: without_dtype(fields[name]) for name in names}


@pytest.mark.parametrize("shards", [None, "60KB"])
@pytest.mark.parametrize("fields", [{}, {"plora_rank": 4}, {"tie_word_embeddings": True}], ids=str)
def test_round_trip_is_bit_equal_when_saved(tmp_path, shards: str | None, fields: dict) -> None:
    model = build_tiny_model(**fields)
    inputs = build_tiny_inputs(model.config)
    model.save_pretrained(tmp_path, **({} if shards is None else {"max_shard_size": shards}))
    assert (len(list(tmp_path.glob("*.safetensors"))) > 3) == (shards is not None)
    names = {path.name for path in tmp_path.iterdir() if path.suffix not in (".json", ".safetensors")}
    assert names == {"moai_auto.py"}
    loaded, info = MoAIForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    expected, got = model.state_dict(), loaded.state_dict()
    assert expected.keys() == got.keys() and all(torch.equal(expected[name], got[name]) for name in expected)
    assert torch.equal(model(**inputs).logits, loaded(**inputs).logits)
    # The dtype of the weights is told on loading; all else is as it was.
    assert without_dtype(loaded.config.to_dict()) == without_dtype(model.config.to_dict())


def test_new_parts_are_initialised_when_the_checkpoint_holds_backbones_only(tmp_path) -> None:
    model = build_tiny_model(plora_rank=4)
    backbones = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not any(part in name for part in ("compressor", "mixers", "multi_modal_projector", ".update."))
    }
    model.save_pretrained(tmp_path, state_dict=backbones)
    torch.manual_seed(0)
    loaded, info = MoAIForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert {name.split(".")[1] for name in info["missing_keys"]} >= {"compressor", "mixers", "multi_modal_projector"}
    assert not any(parameter.is_meta for parameter in loaded.parameters())
    for name, tensor in backbones.items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    for name, module in loaded.named_modules():
        if isinstance(module, LowRankProjection):
            for factor, std in zip((module.down, module.up), module.init_stds, strict=True):
                assert 0.8 * std < factor.std() < 1.2 * std, name
        elif isinstance(module, LowRankUpdate):
            assert 0.7 < module.lora_a.std() * module.lora_a.shape[1] ** 0.5 < 1.3 and not module.lora_b.any(), name
        elif isinstance(module, Gate):
            assert not module.weight.any() and not module.bias.any(), name
        elif isinstance(module, LatentTokens):
            assert 0.7 < module.weight.std() < 1.3, name
        elif ".compressor" in name or ".multi_modal_projector" in name:
            if isinstance(module, torch.nn.Linear):
                assert 0.8 < module.weight.std() * module.in_features**0.5 < 1.2, name
                assert module.bias is None or not module.bias.any(), name
            elif isinstance(module, torch.nn.LayerNorm):
                assert (module.weight == 1).all() and not module.bias.any(), name


@pytest.mark.parametrize("tie", [True, False])
def test_embeddings_resize_and_stay_tied_when_asked(tie: bool) -> None:
    model = build_tiny_model(tie_word_embeddings=tie)
    inputs = build_tiny_inputs(model.config)
    with torch.no_grad():
        expected = real_word_logits(model(**inputs).logits)
        model.resize_token_embeddings(300)
        assert model.config.text_config.vocab_size == 300 and model.lm_head.weight.shape[0] == 300
        assert model.get_input_embeddings().weight.shape[0] == 300
        assert (model.lm_head.weight is model.get_input_embeddings().weight) == tie
        inputs["auxiliary_input_ids"][:, -1] = 299  # new words may stand in findings too
        inputs["input_ids"][:, -1] = 299
        model(**inputs)
        inputs = build_tiny_inputs(model.config)
        inputs["input_ids"] = inputs["input_ids"].clamp(max=IMAGE_TOKEN_ID)
        fresh = build_tiny_inputs(build_tiny_config())
        assert torch.allclose(real_word_logits(model(**fresh).logits)[..., : expected.shape[-1]], expected, atol=1e-6)


def test_embeddings_refuse_to_shrink_when_the_placeholder_would_be_lost() -> None:
    model = build_tiny_model()
    with pytest.raises(ValueError, match="image_token_id"):
        model.resize_token_embeddings(IMAGE_TOKEN_ID)


@pytest.mark.parametrize("text", [{}, {"tie_word_embeddings": True}])
def test_head_shares_the_embedding_when_tied(tmp_path, text: dict) -> None:
    model = build_tiny_model(text=text)
    assert model.config.tie_word_embeddings == bool(text)
    model.save_pretrained(tmp_path)
    loaded = MoAIForConditionalGeneration.from_pretrained(tmp_path)
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == bool(text)


def test_model_equals_itself_when_dispatched_to_disk(tmp_path) -> None:
    model = build_tiny_model(plora_rank=4)
    inputs = build_tiny_inputs(model.config)
    model.save_pretrained(tmp_path / "model")
    expected = model(**inputs).logits
    whole = MoAIForConditionalGeneration.from_pretrained(tmp_path / "model", device_map="cpu")
    assert torch.equal(whole(**inputs).logits, expected)
    device_map = {
        "model.vision_tower": "cpu",
        "model.multi_modal_projector": "disk",
        "model.compressor": "disk",
        "model.mixers": "disk",
        "model.language_model.embed_tokens": "cpu",
        "model.language_model.layers.0": "cpu",
        "model.language_model.layers.1": "disk",
        "model.language_model.layers.2": "disk",
        "model.language_model.layers.3": "cpu",
        "model.language_model.norm": "cpu",
        "model.language_model.rotary_emb": "cpu",
        "lm_head": "cpu",
    }
    spread = MoAIForConditionalGeneration.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    with torch.no_grad():
        assert torch.allclose(spread(**inputs).logits, expected, atol=1e-6)
