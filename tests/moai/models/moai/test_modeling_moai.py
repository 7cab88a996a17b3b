"""MoAIModel and MoAIForConditionalGeneration: what one forward pass promises."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import (
    FAMILIES,
    FIRST_WORD_ID,
    IMAGE_TOKEN_ID,
    add_labels,
    build_tiny_inputs,
    build_tiny_model,
    real_word_logits,
    take_single,
)

from moai import MoAIForConditionalGeneration

NUM_WORDS, NUM_AUXILIARY = (5, 3, 9), (6, 0, 2)
TOKEN_KEYS = ("input_ids", "attention_mask", "mm_token_type_ids")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("has_map", [True, False])
def test_model_batch_equals_singles_when_prompts_and_findings_are_unequal(family: str, has_map: bool) -> None:
    model = build_tiny_model(family, plora_rank=4)
    inputs = build_tiny_inputs(model.config, NUM_WORDS, NUM_AUXILIARY, has_map=has_map)
    with torch.no_grad():
        together = model(**inputs).logits
        for row in range(3):
            alone = model(**take_single(inputs, row)).logits[0]
            assert torch.allclose(
                real_word_logits(together[row, -len(alone) :]), real_word_logits(alone), atol=2e-4, rtol=0
            ), f"row {row}"


@pytest.mark.parametrize("family", FAMILIES)
def test_model_hears_image_findings_and_map_when_any_changes(family: str) -> None:
    # Otherwise equality tests would compare deaf models.
    model = build_tiny_model(family, plora_rank=4)
    inputs = build_tiny_inputs(model.config)
    with torch.no_grad():
        base = real_word_logits(model(**inputs).logits)
        for name in ("pixel_values", "auxiliary_pixel_values"):
            assert (real_word_logits(model(**inputs | {name: -inputs[name]}).logits) - base)[
                :, -1
            ].abs().max() > 1e-3, name
        other = inputs | {"auxiliary_input_ids": inputs["auxiliary_input_ids"].roll(1, dims=1)}
        assert (real_word_logits(model(**other).logits) - base)[:, -1].abs().max() > 1e-4


@pytest.mark.parametrize(("gives_roles", "plora_rank"), [(True, 4), (False, 0)])
def test_logits_see_no_answer_token_ahead_when_labels_are_given(gives_roles: bool, plora_rank: int) -> None:
    model = build_tiny_model(plora_rank=plora_rank)
    inputs = add_labels(build_tiny_inputs(model.config, (8, 6), (6, 4)), num_answer=4)
    if not gives_roles:
        del inputs["mm_token_type_ids"]  # the labels say what is answer
    length = inputs["input_ids"].shape[1]
    with torch.no_grad():
        base = model(**inputs).logits
        for position in range(length - 4, length):
            changed = inputs["input_ids"].clone()
            changed[:, position] = (changed[:, position] - FIRST_WORD_ID + 7) % (IMAGE_TOKEN_ID - 4) + FIRST_WORD_ID
            logits = model(**inputs | {"input_ids": changed}).logits
            assert torch.equal(logits[:, :position], base[:, :position]), f"token {position} is seen before its time"
            assert not torch.equal(logits[:, position:], base[:, position:])


def test_prompt_looks_ahead_when_it_is_mixed() -> None:
    # The counterpart: experts are not causal, so a later prompt token does reach earlier logits.
    model = build_tiny_model()
    inputs = build_tiny_inputs(model.config)
    changed = inputs["input_ids"].clone()
    changed[:, -1] = (changed[:, -1] + 11) % (IMAGE_TOKEN_ID - FIRST_WORD_ID) + FIRST_WORD_ID
    with torch.no_grad():
        base, other = model(**inputs).logits, model(**inputs | {"input_ids": changed}).logits
    assert (real_word_logits(base) - real_word_logits(other))[:, :-1].abs().max() > 1e-3


def test_roles_are_inferred_as_the_processor_writes_them_when_absent() -> None:
    model = build_tiny_model()
    inputs = build_tiny_inputs(model.config, NUM_WORDS, NUM_AUXILIARY)
    with torch.no_grad():
        given = model(**inputs).logits
        inferred = model(**{name: value for name, value in inputs.items() if name != "mm_token_type_ids"}).logits
    assert torch.equal(given, inferred)


@pytest.mark.parametrize("routing", [None, "uniform", {"top_k": 1}, {"mode": "random_expert", "seed": 3}])
def test_output_routing_has_a_weight_per_layer_stream_and_token_when_asked(routing: Any) -> None:
    model = build_tiny_model()
    inputs = build_tiny_inputs(model.config, NUM_WORDS, NUM_AUXILIARY)
    output = model(**inputs, routing=routing, output_routing=True)
    patches = model.config.num_image_tokens
    assert [layer.layer_idx for layer in output.routing] == model.config.mixer["layers"]
    for layer in output.routing:
        assert layer.image.shape == (3, patches, 3) and layer.language.shape == (3, max(NUM_WORDS), 3)
        assert layer.language_mask.sum(1).tolist() == list(NUM_WORDS)
        for weights, mask in ((layer.image, layer.image_mask), (layer.language, layer.language_mask)):
            assert torch.allclose(weights.sum(-1), mask.float(), atol=1e-6)
    assert output.image_hidden_states.shape == (3, patches, 64)
    assert output.auxiliary_hidden_states.shape == (3, model.config.compressor["num_latents"], 64)
    assert model(**inputs).routing is None


def test_routing_override_moves_each_sample_alone_when_per_sample() -> None:
    model = build_tiny_model()
    inputs = build_tiny_inputs(model.config)
    weights = torch.full((2, 2, 2, 3), 1 / 3)
    weights[1] = torch.tensor([0.0, 0.0, 1.0])
    with torch.no_grad():
        mixed, uniform = model(**inputs, routing=weights).logits, model(**inputs, routing="uniform").logits
    assert torch.allclose(mixed[0], uniform[0], atol=1e-5)
    assert (real_word_logits(mixed[1]) - real_word_logits(uniform[1]))[-1].abs().max() > 1e-3


def test_plain_text_goes_through_the_plain_decoder_when_there_is_nothing_to_mix() -> None:
    model = build_tiny_model(plora_rank=4)
    ids = torch.tensor([[5, 6, 7, 8]])
    hidden = model.model.language_model(ids).last_hidden_state
    with torch.no_grad():
        assert torch.equal(real_word_logits(model(ids).logits), real_word_logits(model.lm_head(hidden)))
        # and in a batch with an image beside it
        inputs = build_tiny_inputs(model.config, (5, 3), has_map=False)
        inputs = {name: value for name, value in inputs.items() if not name.startswith("auxiliary")}
        alone = model(**inputs).logits
        length = inputs["input_ids"].shape[1]
        text = torch.tensor([[0] * (length - 4) + [5, 6, 7, 8]])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], text])
        for name in ("attention_mask", "mm_token_type_ids"):
            inputs[name] = torch.cat([inputs[name], (text > 0) * (1 if name == "attention_mask" else 2)])
        together = model(**inputs).logits
    assert torch.allclose(real_word_logits(together[:2]), real_word_logits(alone), atol=1e-5)
    assert torch.allclose(real_word_logits(together[2, -4:]), real_word_logits(model(ids).logits[0]), atol=1e-5)


def test_several_images_fill_their_slots_in_order_when_a_prompt_has_two() -> None:
    model = build_tiny_model()
    patches = model.config.num_image_tokens
    slots = [IMAGE_TOKEN_ID] * patches
    ids = torch.tensor([[*slots, 9, *slots, 8, 7]])
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        first, second = model(ids, pixel_values=pixels).logits, model(ids, pixel_values=pixels.flip(0)).logits
        features = model.get_image_features(pixels, return_dict=True).pooler_output
        given = model(ids, image_features=features).logits
    assert (real_word_logits(first) - real_word_logits(second)).abs().max() > 1e-3
    assert torch.equal(first, given)


def test_states_given_directly_equal_encoded_ones_when_passed() -> None:
    model = build_tiny_model()
    inputs = build_tiny_inputs(model.config)
    auxiliary = {name: value for name, value in inputs.items() if name.startswith("auxiliary")}
    rest = {name: value for name, value in inputs.items() if not name.startswith("auxiliary")}
    with torch.no_grad():
        expected = model(**inputs).logits
        states = model.get_auxiliary_states(**auxiliary)
        assert torch.equal(model(**rest, auxiliary_states=states).logits, expected)


def test_inputs_embeds_equal_input_ids_when_roles_are_given() -> None:
    model = build_tiny_model(plora_rank=4)
    inputs = build_tiny_inputs(model.config)
    with torch.no_grad():
        expected = model(**inputs).logits
        embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
        assert torch.equal(model(**inputs, inputs_embeds=embeds).logits, expected)
        del inputs["mm_token_type_ids"]  # placeholders can be read off their embedding
        assert torch.equal(model(**inputs, inputs_embeds=embeds).logits, expected)
        del inputs["pixel_values"]  # what is image and what is word cannot
        with pytest.raises(ValueError, match="mm_token_type_ids"):
            model(**inputs, inputs_embeds=embeds)


def test_image_features_come_with_the_towers_outputs_when_asked() -> None:
    for layer in (-1, -2):
        model = build_tiny_model(vision_feature_layer=layer)
        pixels = torch.randn(2, 3, 28, 28)
        output = model.get_image_features(pixels, output_hidden_states=True, return_dict=True)
        assert output.pooler_output.shape == (2, 4, 64) and len(output.hidden_states) == 3
        plain = model.get_image_features(pixels, output_hidden_states=False, return_dict=True)
        assert torch.equal(plain.pooler_output, output.pooler_output)


def test_image_features_are_of_the_layers_and_tokens_that_a_call_names() -> None:
    model, second_last = build_tiny_model(), build_tiny_model(vision_feature_layer=-2)
    second_last.load_state_dict(model.state_dict())
    inputs = build_tiny_inputs(model.config)
    pixels = inputs["pixel_values"]
    with torch.no_grad():
        tower = model.model.vision_tower(pixels, output_hidden_states=True)
        expected = model.model.multi_modal_projector(tower.hidden_states[-2][:, 1:])
        for layer in (-2, [-2], 1):
            got = model.get_image_features(pixels, vision_feature_layer=layer).pooler_output
            assert torch.equal(got, expected)
        full = model.get_image_features(pixels, vision_feature_select_strategy="full").pooler_output
        assert torch.equal(full, model.model.multi_modal_projector(tower.last_hidden_state))
        # forward and generate, for the image and the map
        logits = second_last(**inputs).logits
        assert torch.equal(model(**inputs, vision_feature_layer=-2).logits, logits)
        assert not torch.equal(model(**inputs).logits, logits)
        settings = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
        expected = second_last.generate(**inputs, **settings).logits
        got = model.generate(**inputs, **settings, vision_feature_layer=-2).logits
        assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    for options, message in (
        ({"vision_feature_layer": -4}, "-3 to 2"),
        ({"vision_feature_layer": [-1, -2]}, "as many hidden states as the projector reads, 1, got"),
        ({"vision_feature_layer": []}, "number or a list"),
        ({"vision_feature_layer": "last"}, "number or a list"),
        ({"vision_feature_select_strategy": "cls"}, "'default' or 'full', got 'cls'"),
    ):
        with pytest.raises(ValueError, match=message):
            model.get_image_features(pixels, **options)


def test_image_features_stand_side_by_side_when_the_configuration_lists_layers(tmp_path: Path) -> None:
    model = build_tiny_model(vision_feature_layer=[-2, -1, 0])
    assert model.model.multi_modal_projector.linear_1.in_features == 3 * 32
    inputs = build_tiny_inputs(model.config)
    with torch.no_grad():
        tower = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True)
        joined = torch.cat([tower.hidden_states[layer] for layer in (-2, -1, 0)], dim=-1)[:, 1:]
        output = model(**inputs)
        assert torch.equal(output.image_hidden_states, model.model.multi_modal_projector(joined))
        model.save_pretrained(tmp_path)
        loaded = MoAIForConditionalGeneration.from_pretrained(tmp_path)
        assert loaded.config.vision_feature_layer == [-2, -1, 0]
        assert torch.equal(loaded(**inputs).logits, output.logits)
        other = model.get_image_features(inputs["pixel_values"], vision_feature_layer=[0, 0, 1]).pooler_output
        assert other.shape == (2, 4, 64) and not torch.equal(other, output.image_hidden_states)
    with pytest.raises(ValueError, match="projector reads, 3, got -1"):
        model.get_image_features(inputs["pixel_values"], vision_feature_layer=-1)


def test_outputs_hold_the_towers_output_when_it_ran() -> None:
    model = build_tiny_model()
    inputs = build_tiny_inputs(model.config)
    with torch.no_grad():
        for each in (model, model.model):
            output = each(**inputs)
            assert output.image_outputs.pooler_output is output.image_hidden_states
            assert output.image_outputs.last_hidden_state.shape == (2, 5, 32)
            assert output.image_outputs.hidden_states is None
            assert each(**inputs, output_hidden_states=True).image_outputs.hidden_states[0].shape == (2, 5, 32)
            assert not any(isinstance(item, dict) for item in each(**inputs, return_dict=False))
        features = output.image_hidden_states
        del inputs["pixel_values"]
        assert model(**inputs, image_features=features).image_outputs is None


def test_hidden_states_are_returned_when_the_whole_configuration_asks_for_them() -> None:
    model = build_tiny_model()
    inputs = build_tiny_inputs(model.config)
    with torch.no_grad():
        assert model(**inputs).hidden_states is None
        model.config.output_hidden_states = True
        output = model(**inputs)
        assert len(output.hidden_states) == 5 and len(output.image_outputs.hidden_states) == 3
        assert model(**inputs, output_hidden_states=False).hidden_states is None


@pytest.mark.parametrize("plora_rank", [0, 4])
def test_cached_steps_equal_one_pass_when_the_answer_is_fed_token_by_token(plora_rank: int) -> None:
    model = build_tiny_model(plora_rank=plora_rank)
    inputs = add_labels(build_tiny_inputs(model.config, (8, 6), (6, 4)), num_answer=4)
    del inputs["labels"]
    with torch.no_grad():
        expected = model(**inputs).logits
        prompt = {name: value[:, :-4] if name in TOKEN_KEYS else value for name, value in inputs.items()}
        output = model(**prompt, use_cache=True)
        logits, mask = [output.logits], inputs["attention_mask"]
        for step in range(4):
            position = inputs["input_ids"].shape[1] - 4 + step
            output = model(
                inputs["input_ids"][:, position : position + 1],
                attention_mask=mask[:, : position + 1],
                cache=output.cache,
            )
            logits.append(output.logits)
    assert torch.allclose(real_word_logits(torch.cat(logits, dim=1)), real_word_logits(expected), atol=1e-4)


def test_loss_follows_shift_labels_when_given() -> None:
    # Sequence parallel training hands over targets that are aligned already.
    model = build_tiny_model()
    inputs = add_labels(build_tiny_inputs(model.config, (8, 6), (6, 4)), num_answer=4)
    aligned = torch.nn.functional.pad(inputs["labels"], (0, 1), value=-100)[:, 1:].contiguous()
    with torch.no_grad():
        expected = model(**inputs).loss
        assert torch.allclose(model(**inputs, shift_labels=aligned).loss, expected, atol=1e-6)
        other = torch.where(aligned == -100, -100, 5)
        assert not torch.allclose(model(**inputs, shift_labels=other).loss, expected, atol=1e-3)


def test_placeholder_is_never_said_nor_learned_when_labels_copy_the_ids() -> None:
    model = build_tiny_model()
    inputs = build_tiny_inputs(model.config, (5,), (6,))
    output = model(**inputs, labels=inputs["input_ids"])
    assert output.loss.isfinite() and output.loss < 20
    assert (output.logits.argmax(-1) != IMAGE_TOKEN_ID).all()


def test_loss_is_the_mean_next_token_cross_entropy_when_labels_are_given() -> None:
    model = build_tiny_model()
    inputs = add_labels(build_tiny_inputs(model.config, (8, 6), (6, 4)), num_answer=4)
    output = model(**inputs)
    targets = inputs["labels"][:, 1:].flatten()
    expected = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), targets, ignore_index=-100)
    assert torch.allclose(output.loss, expected, atol=1e-5)


def train_once(model: MoAIForConditionalGeneration, inputs: dict, routing: Any) -> tuple[torch.Tensor, dict]:
    model.zero_grad()
    torch.manual_seed(5)
    loss = model(**inputs, routing=routing, use_cache=False).loss
    loss.backward()
    return loss.detach(), {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }


@pytest.mark.parametrize(
    ("family", "plora_rank", "routing", "arguments"),
    [
        ("llama", 4, "gated", None),
        ("qwen3", 0, "random_expert", None),
        ("qwen3", 4, {"mode": "random_expert", "seed": 3}, None),
        # PEFT's default call names no form, which torch reads as the reentrant one.
        ("llama", 0, "gated", {}),
        ("llama", 0, "gated", {"use_reentrant": True}),
    ],
)
def test_gradients_are_equal_when_checkpointing_recomputes(
    family: str, plora_rank: int, routing: Any, arguments: Any
) -> None:
    model = build_tiny_model(family, plora_rank=plora_rank).train()
    inputs = add_labels(build_tiny_inputs(model.config, (8, 6), (6, 4)), num_answer=4)
    loss, gradients = train_once(model, inputs, routing)
    with nullcontext() if arguments is None else pytest.warns(UserWarning, match="use_reentrant=False"):
        model.activation_checkpointing_enable(arguments)
    calls = []
    handle = model.model.mixers.register_forward_hook(lambda *_: calls.append(1))
    other_loss, other_gradients = train_once(model, inputs, routing)
    handle.remove()
    assert len(calls) == 2 * len(model.config.mixer["layers"]), "nothing was recomputed"
    assert torch.equal(loss, other_loss) and gradients.keys() == other_gradients.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, other_gradients[name], atol=1e-6), name


def test_every_trainable_part_gets_gradient_when_gated() -> None:
    model = build_tiny_model(plora_rank=4).train()
    inputs = add_labels(build_tiny_inputs(model.config, (8, 6), (6, 4)), num_answer=4)
    _, gradients = train_once(model, inputs, "gated")
    parts = ("compressor", "mixers", "multi_modal_projector", "language_model", "lm_head")
    silent = {
        name
        for name, _ in model.named_parameters()
        if any(part in name for part in parts) and not gradients.get(name, torch.zeros(1)).abs().sum() > 0
    }
    # In the last layer only keys and values of image tokens reach an answer: their partial LoRA rests by design.
    last = f"layers.{model.config.text_config.num_hidden_layers - 1}."
    expected = {
        name
        for name, _ in model.named_parameters()
        if last in name and ".update." in name and not any(part in name for part in ("k_proj", "v_proj"))
    }
    assert silent == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("plora_rank", [0, 4])
def test_model_runs_close_to_float32_when_half_precision(dtype: torch.dtype, plora_rank: int) -> None:
    model = build_tiny_model(plora_rank=plora_rank, plora_alpha=8.0)
    inputs = build_tiny_inputs(model.config, NUM_WORDS, NUM_AUXILIARY)
    with torch.no_grad():
        expected = real_word_logits(model(**inputs).logits)
        half = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
        output = model.to(dtype)(**half, output_routing=True)
    got = real_word_logits(output.logits)[inputs["attention_mask"].bool()]
    assert output.logits.dtype == dtype and got.isfinite().all()
    expected = expected[inputs["attention_mask"].bool()]
    assert torch.nn.functional.cosine_similarity(got.float(), expected, dim=-1).min() > 0.99
    assert output.routing[0].image.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": torch.zeros(3, 3, 28, 28)}, "12 image tokens .3 images x 4 patches., got 8"),
        ({"inputs_embeds": torch.zeros(2, 9, 64)}, "exactly one"),
        ({"routing": torch.ones(3, 2, 2, 3)}, "batch of 2, got 3"),
        ({"auxiliary_pixel_values": torch.zeros(1, 3, 28, 28)}, "as many maps as auxiliary texts"),
        ({"auxiliary_states": torch.zeros(1, 4, 64)}, "auxiliary_states"),
        ({"mm_token_type_ids": torch.ones(2, 3, dtype=torch.long)}, "mm_token_type_ids"),
    ],
)
def test_model_says_what_does_not_fit_when_inputs_are_wrong(change: dict, message: str) -> None:
    model = build_tiny_model()
    with pytest.raises(ValueError, match=message):
        model(**build_tiny_inputs(model.config) | change)
