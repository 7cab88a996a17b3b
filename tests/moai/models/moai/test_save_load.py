"""Save and load: bit-equal, whole and sharded; safetensors only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from builders import build_tiny_inputs, build_tiny_model

from moai import MoAIForConditionalGeneration

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


def without_dtype(fields: Any) -> Any:
    """The dtype of the weights is told on loading; all else is as it was."""
    if not isinstance(fields, dict):
        return fields
    names = fields.keys() - {"dtype", "_name_or_path", "architectures", "transformers_version"}
    return {name: without_dtype(fields[name]) for name in names}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("max_shard_size", ["5GB", "100KB"])
def test_round_trip_is_bit_equal_when_saved_and_loaded(tmp_path, variant, max_shard_size):
    model, folder = build_variant(variant, tmp_path), tmp_path / "saved"
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    others = {path.name for path in folder.iterdir() if path.suffix not in (".json", ".safetensors")}
    assert others == {"moai_auto.py"}
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (max_shard_size == "100KB")
    again, info = MoAIForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert again.dtype == model.dtype
    assert not again.training
    state = again.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert (again.lm_head.weight is again.get_input_embeddings().weight) == (variant == "tied")
    assert without_dtype(again.config.to_dict()) == without_dtype(model.config.to_dict())
    inputs = build_tiny_inputs(model.config)
    inputs = {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_loading_is_refused_when_weights_are_pickled(tmp_path):
    model = build_tiny_model()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        MoAIForConditionalGeneration.from_pretrained(tmp_path)
