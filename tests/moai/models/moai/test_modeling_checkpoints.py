"""Checkpoints of the model: saving, loading, new parts, resized and tied embeddings, disk offload."""

import pytest
import torch
from builders import IMAGE_TOKEN_ID, build_tiny_config, build_tiny_inputs, build_tiny_model, real_word_logits

from compressor import LatentTokens
from mixer import Gate, LowRankProjection
from moai import MoAIForConditionalGeneration
from moai.models.moai.partial_lora import LowRankUpdate

NUM_WORDS, NUM_AUXILIARY = (5, 3, 9), (6, 0, 2)


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
