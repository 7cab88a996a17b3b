"""Save and load: bit-equal, whole and sharded; safetensors only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from builders import build_tiny_inputs, build_tiny_model

from moai import MoAIForConditionalGeneration, MoAIModel

VARIANTS = {
    "encoder": {},
    "perceiver": {"compressor": {"architecture": "perceiver"}},
    "partial lora": {"plora_rank": 4},
    "tied": {"text": {"tie_word_embeddings": True}},
    "half": {},
}


def build_variant(name: str, folder: Path) -> MoAIForConditionalGeneration:
    model = build_tiny_model(**VARIANTS[name])
    if name != "half":
        return model
    # Not model.to(torch.bfloat16): that would round the rotary frequencies too, which a loaded model computes anew.
    model.save_pretrained(folder / "full")
    return MoAIForConditionalGeneration.from_pretrained(folder / "full", dtype=torch.bfloat16)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("max_shard_size", ["5GB", "100KB"])
def test_round_trip_is_bit_equal_when_saved_and_loaded(tmp_path, variant, max_shard_size):
    model, folder = build_variant(variant, tmp_path), tmp_path / "saved"
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    assert not list(folder.glob("*.bin"))
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (max_shard_size == "100KB")
    again = MoAIForConditionalGeneration.from_pretrained(folder)
    assert again.dtype == model.dtype
    assert not again.training
    state = again.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    for field in ("compressor", "mixer", "plora_rank", "plora_alpha", "image_token_id", "num_image_tokens"):
        assert getattr(again.config, field) == getattr(model.config, field), field
    inputs = build_tiny_inputs(model.config)
    inputs = {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_body_alone_loads_when_the_whole_was_saved(tmp_path):
    model = build_tiny_model()
    model.save_pretrained(tmp_path)
    body = MoAIModel.from_pretrained(tmp_path)
    state = body.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.model.state_dict().items())


def test_loading_is_refused_when_weights_are_pickled(tmp_path):
    model = build_tiny_model()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        MoAIForConditionalGeneration.from_pretrained(tmp_path)
