"""PEFT: LoRA on the decoder, compressor and mixers saved whole, every door of the library."""

import re

import pytest
import torch
from builders import FAMILIES, build_tiny_inputs, build_tiny_model

peft = pytest.importorskip("peft", reason='needs peft: pip install "moai-vlm[train]"')

from moai import MoAIForConditionalGeneration  # noqa: E402
from moai.models.moai.adapters import decoder_linears_pattern, default_lora_config  # noqa: E402

LINEARS_PER_LAYER = 7


def build(plora_rank: int = 0, family: str = "llama") -> MoAIForConditionalGeneration:
    return build_tiny_model(family, plora_rank=plora_rank, plora_alpha=8.0)


def adapt(model: MoAIForConditionalGeneration, *, seed: int = 0, **options):
    """A PEFT model whose trainable weights have moved away from their start."""
    torch.manual_seed(seed)
    adapted = peft.get_peft_model(model, default_lora_config(model, 4, **options)).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return adapted


def run(model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits[..., :255]


@pytest.mark.parametrize("plora_rank", [0, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_lora_touches_decoder_linears_only_when_configured(family: str, plora_rank: int) -> None:
    model = build(plora_rank, family)
    inputs = build_tiny_inputs(model.config)
    before = run(model, inputs)
    adapted = peft.get_peft_model(model, default_lora_config(model, 4))
    assert torch.equal(run(adapted.eval(), inputs), before)  # B starts at zero
    adapters = [name for name, _ in adapted.named_parameters() if ".lora_A." in name]
    depth = model.config.text_config.num_hidden_layers
    assert len(adapters) == LINEARS_PER_LAYER * depth and all("language_model.layers" in name for name in adapters)
    trainable = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    whole = {name for name in trainable if ".modules_to_save." in name}
    assert trainable - whole == {
        name for name, _ in adapted.named_parameters() if ".lora_A." in name or ".lora_B." in name
    }
    parts = {re.search(r"(compressor|mixers|multi_modal_projector)", name).group() for name in whole}
    assert parts == {"compressor", "mixers", "multi_modal_projector"}


@pytest.mark.parametrize("plora_rank", [0, 4])
@pytest.mark.parametrize("trains_projector", [True, False])
def test_adapter_gives_equal_outputs_when_saved_and_loaded(tmp_path, plora_rank: int, trains_projector: bool) -> None:
    model = build(plora_rank)
    inputs = build_tiny_inputs(model.config)
    before = run(model, inputs)
    adapted = adapt(model, trains_projector=trains_projector)
    expected = run(adapted, inputs)
    assert (expected - before).abs().max() > 1e-2
    adapted.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()

    loaded = peft.PeftModel.from_pretrained(build(plora_rank), tmp_path).eval()
    assert torch.equal(run(loaded, inputs), expected)
    with loaded.disable_adapter():
        assert torch.equal(run(loaded, inputs), before)
    generated = adapted.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(loaded.generate(**inputs, max_new_tokens=4, do_sample=False), generated)

    native = build(plora_rank)  # transformers' own door
    native.load_adapter(tmp_path)
    assert torch.allclose(run(native.eval(), inputs), expected, atol=1e-6)


def test_adapters_change_places_when_set(tmp_path) -> None:
    inputs = build_tiny_inputs(build().config)
    outputs = {}
    for seed, name in enumerate(("first", "second")):
        adapted = adapt(build(), seed=seed)
        outputs[name] = run(adapted, inputs)
        adapted.save_pretrained(tmp_path / name)
    assert not torch.allclose(outputs["first"], outputs["second"], atol=1e-3)
    loaded = peft.PeftModel.from_pretrained(build(), tmp_path / "first", adapter_name="first").eval()
    loaded.load_adapter(tmp_path / "second", "second")
    for name in ("second", "first", "second"):
        loaded.set_adapter(name)
        assert torch.equal(run(loaded, inputs), outputs[name])


@pytest.mark.parametrize("plora_rank", [0, 4])
def test_merged_model_equals_the_adapted_one_when_unloaded(tmp_path, plora_rank: int) -> None:
    inputs = build_tiny_inputs(build().config)
    adapted = adapt(build(plora_rank))
    expected = run(adapted, inputs)
    merged = adapted.merge_and_unload()
    assert isinstance(merged, MoAIForConditionalGeneration)
    assert torch.allclose(run(merged, inputs), expected, atol=1e-5)
    assert merged.state_dict().keys() == build(plora_rank).state_dict().keys()
    merged.save_pretrained(tmp_path)
    assert torch.equal(run(MoAIForConditionalGeneration.from_pretrained(tmp_path), inputs), run(merged, inputs))


@pytest.mark.parametrize("plora_rank", [0, 4])
def test_model_is_as_before_when_the_adapter_is_unloaded(plora_rank: int) -> None:
    model = build(plora_rank)
    inputs = build_tiny_inputs(model.config)
    before = run(model, inputs)
    adapted = peft.get_peft_model(model, default_lora_config(model, 4, modules_to_save=None))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                parameter.normal_()
    assert not torch.equal(run(adapted.eval(), inputs), before)
    assert torch.equal(run(adapted.unload(), inputs), before)


@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize("plora_rank", [0, 4])
def test_training_step_moves_adapters_and_new_parts_when_adapted(plora_rank: int, checkpoints: bool) -> None:
    model = build(plora_rank)
    if checkpoints:
        model.activation_checkpointing_enable()
        model.enable_input_require_grads()
    adapted = peft.get_peft_model(model, default_lora_config(model, 4, dropout=0.0)).train()
    inputs = build_tiny_inputs(model.config, (8, 6), (6, 4))
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -3:] = inputs["input_ids"][:, -3:]
    adapted(**inputs, labels=labels, use_cache=False).loss.backward()
    grads = {name: parameter.grad for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    for part in ("compressor.modules_to_save", "mixers.modules_to_save", "lora_B"):
        assert any(part in name and gradient.abs().sum() > 0 for name, gradient in grads.items()), part
    frozen = [name for name in grads if "lora_" not in name and "modules_to_save" not in name]
    # enable_input_require_grads makes embeddings' outputs require gradient, never a frozen weight
    assert not frozen


@pytest.mark.parametrize("has_partial_lora", [True, False])
def test_pattern_matches_every_decoder_linear_and_nothing_else_when_full(has_partial_lora: bool) -> None:
    pattern = re.compile(decoder_linears_pattern(has_partial_lora))
    model = build(4 if has_partial_lora else 0)
    matched = {name for name, _ in model.named_modules() if pattern.fullmatch(name)}
    expected = {
        name
        for name, module in model.model.language_model.named_modules(prefix="model.language_model")
        if isinstance(module, torch.nn.Linear)
    }
    assert matched == expected and len(expected) == LINEARS_PER_LAYER * 4


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"linears": ("wqkv",)}, {"linears": ()}], ids=str)
def test_default_lora_config_says_what_is_wrong_when_misused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        default_lora_config(build(), **wrong)


def test_default_lora_config_says_what_to_install_when_peft_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    from moai import import_utils

    monkeypatch.setattr(import_utils, "_is_package_available", lambda package: package != "peft")
    with pytest.raises(ImportError, match=r"moai-vlm\[train\]"):
        default_lora_config(build())
