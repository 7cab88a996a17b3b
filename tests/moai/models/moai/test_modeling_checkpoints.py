"""New parts of a model whose checkpoint holds backbones only."""

import torch
from builders import build_tiny_model

from compressor import LatentTokens
from mixer import Gate, LowRankProjection
from moai import MoAIForConditionalGeneration
from moai.models.moai.partial_lora import LowRankUpdate


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
