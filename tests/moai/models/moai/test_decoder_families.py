"""Any Hugging Face decoder and vision tower: the mixture enters, the backbone stays as its authors saved it."""

from typing import Any

import pytest
import torch
from builders import FAMILIES, IMAGE_TOKEN_ID, build_tiny_config, build_tiny_inputs, build_tiny_model
from transformers import AutoModel

from moai import MoAIForConditionalGeneration
from moai.models.moai.partial_lora import TARGET_LINEARS, PartialLoraLinear


def words(logits: torch.Tensor) -> torch.Tensor:
    return logits[..., :IMAGE_TOKEN_ID]


@pytest.mark.parametrize("family", FAMILIES)
def test_decoder_keeps_its_authors_keys_when_it_mixes(family: str) -> None:
    config = build_tiny_config(family)
    plain = AutoModel.from_config(config.text_config)
    model = MoAIForConditionalGeneration(config)
    assert model.model.language_model.state_dict().keys() == plain.state_dict().keys()
    assert isinstance(model.model.language_model, type(plain))


@pytest.mark.parametrize("family", FAMILIES)
def test_other_decoders_stay_as_they_are_when_a_moai_is_built(family: str) -> None:
    # Classes are exchanged on instances: nothing global may be patched.
    config = build_tiny_config(family)
    before = AutoModel.from_config(config.text_config)
    MoAIForConditionalGeneration(config)
    after = AutoModel.from_config(config.text_config)
    for first, second in zip(before.modules(), after.modules(), strict=True):
        assert type(first) is type(second) and not type(second).__module__.startswith("moai")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("plora_rank", [0, 4])
def test_mixture_enters_where_attention_sees_when_a_layer_is_mixed(family: str, plora_rank: int) -> None:
    model = build_tiny_model(family, plora_rank=plora_rank)
    inputs = build_tiny_inputs(model.config)
    normed, seen = {}, {}
    handles = []
    for index, layer in enumerate(model.model.language_model.layers):
        handles.append(layer.input_layernorm.register_forward_hook(lambda m, a, out, i=index: normed.update({i: out})))
        projection = layer.self_attn.q_proj
        handles.append(projection.register_forward_hook(lambda m, args, out, i=index: seen.update({i: args[0]})))
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    prompt = inputs["mm_token_type_ids"] != 0
    for index in range(len(normed)):
        if index in model.config.mixer["layers"]:
            assert ((seen[index] - normed[index])[prompt].abs().amax(-1) > 1e-4).all()
            assert torch.equal(seen[index][~prompt], normed[index][~prompt])
        else:
            assert torch.equal(seen[index], normed[index])


@pytest.mark.parametrize("family", FAMILIES)
def test_partial_lora_changes_image_positions_only_when_switched_on(family: str) -> None:
    # One layer and no mixture: an update at an image position cannot travel, so only those rows may move.
    fields = {"text": {"num_hidden_layers": 1}, "mixer": {"layers": []}, "plora_rank": 4, "plora_alpha": 8.0}
    model = build_tiny_model(family, **fields)
    inputs = build_tiny_inputs(model.config)
    layer = model.model.language_model.layers[0]
    recorded: dict[str, torch.Tensor] = {}
    wrapped = {name: module for name, module in layer.named_modules() if isinstance(module, PartialLoraLinear)}
    assert {name.split(".")[-1] for name in wrapped} == set(TARGET_LINEARS)
    for name, module in wrapped.items():
        module.register_forward_hook(
            lambda m, args, out, n=name: recorded.update({n: (out - m.base_layer(args[0])).abs().amax(-1)})
        )
    with torch.no_grad():
        model(**inputs)
    is_image = inputs["mm_token_type_ids"] == 1
    for name, change in recorded.items():
        assert (change[is_image] > 1e-5).all(), name
        assert (change[~is_image] == 0).all(), name


def test_partial_lora_is_silent_when_text_is_decoded() -> None:
    model = build_tiny_model(plora_rank=4)
    plain = build_tiny_model(plora_rank=4)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if ".update." in name:
                parameter.zero_()
        ids = torch.tensor([[5, 6, 7]])
        assert torch.equal(model(ids).logits, plain(ids).logits)


def test_partial_lora_scale_is_alpha_over_rank_when_applied() -> None:
    model = build_tiny_model(plora_rank=4, plora_alpha=6.0)
    linear = model.model.language_model.layers[0].self_attn.q_proj
    assert linear.scaling == 1.5
    from moai.models.moai.partial_lora import image_positions_scope

    states = torch.randn(1, 2, 64)
    expected = linear.base_layer(states) + 1.5 * states @ linear.update.lora_a.T @ linear.update.lora_b.T
    with image_positions_scope(torch.tensor([[True, False]])):
        got = linear(states)
    assert torch.allclose(got[:, 0], expected[:, 0], atol=1e-5)
    assert torch.equal(got[:, 1], linear.base_layer(states)[:, 1])
    assert torch.equal(linear(states), linear.base_layer(states))  # the scope is left


TOWERS: dict[str, dict[str, Any]] = {
    "clip": {},
    "clip_second_last_layer": {"vision_feature_layer": -2},
    "clip_full": {"vision_feature_select_strategy": "full"},
    "siglip": {
        "vision": {"model_type": "siglip_vision_model"},
        "vision_feature_select_strategy": "full",
    },
}


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_model_sees_through_any_tower_when_configured(tmp_path, tower: str, family: str) -> None:
    model = build_tiny_model(family, **TOWERS[tower])
    inputs = build_tiny_inputs(model.config)
    with torch.no_grad():
        output = model(**inputs)
        assert output.image_hidden_states.shape == (2, model.config.num_image_tokens, 64)
        other = model(**inputs | {"pixel_values": -inputs["pixel_values"]}).logits
        assert (words(other) - words(output.logits))[:, -1].abs().max() > 1e-4
        model.save_pretrained(tmp_path)
        loaded = MoAIForConditionalGeneration.from_pretrained(tmp_path)
        assert torch.equal(loaded(**inputs).logits, output.logits)


@pytest.mark.parametrize("text", [{"num_key_value_heads": 4}, {"num_key_value_heads": 1}, {"attention_bias": True}])
def test_decoder_shape_does_not_matter_when_heads_and_biases_vary(text: dict) -> None:
    model = build_tiny_model(text=text, plora_rank=4)
    inputs = build_tiny_inputs(model.config)
    generated = model.generate(**inputs, max_new_tokens=3, do_sample=False, eos_token_id=-1)
    assert torch.equal(
        generated, model.generate(**inputs, max_new_tokens=3, do_sample=False, eos_token_id=-1, use_cache=False)
    )


@pytest.mark.parametrize("layers", [[], [0], [0, 1, 2, 3]])
def test_mixers_sit_where_they_are_told_when_any_layers(layers: list[int]) -> None:
    model = build_tiny_model(mixer={"layers": layers})
    inputs = build_tiny_inputs(model.config)
    output = model(**inputs, output_routing=True)
    assert [layer.layer_idx for layer in output.routing] == layers
    assert len(model.model.mixers.layers) == len(layers)


@pytest.mark.parametrize("plora_rank", [0, 4])
def test_decoding_step_compiles_into_one_graph_when_asked(plora_rank: int) -> None:
    model = build_tiny_model(plora_rank=plora_rank)
    inputs = build_tiny_inputs(model.config)
    step = {
        "input_ids": torch.tensor([[7], [9]]),
        "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1),
    }
    compiled = torch.compile(model, fullgraph=True, backend="eager")  # fullgraph raises where a graph would break
    with torch.no_grad():
        expected = model(**step, cache=model(**inputs, use_cache=True).cache).logits
        cache = model(**inputs, use_cache=True).cache
        assert torch.allclose(words(compiled(**step, cache=cache).logits), words(expected), atol=1e-5)
        # and the eager model works as before, images included
        again = model(**step, cache=model(**inputs, use_cache=True).cache).logits
    assert torch.equal(again, expected)
    torch._dynamo.reset()
