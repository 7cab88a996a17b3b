"""The converted model end to end against the released code's outputs."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch
from golden_outputs import GoldenMoAI, load_golden_model

from mixer import Routing
from moai import MoAIForConditionalGeneration
from moai.checkpoints.convert.official_config import build_official_config
from moai.checkpoints.convert.official_keys import convert_official_tensor


@pytest.fixture(scope="module")
def golden(golden_dir) -> GoldenMoAI:
    return GoldenMoAI(golden_dir / "moai")


@pytest.fixture(scope="module")
def model(golden) -> MoAIForConditionalGeneration:
    return load_golden_model(golden.folder)


def close(ours: torch.Tensor, reference: torch.Tensor, tolerance: float, name: str) -> None:
    difference = (ours.float() - reference.float()).abs().max().item()
    assert ours.shape == reference.shape, f"{name}: {tuple(ours.shape)} is not {tuple(reference.shape)}"
    assert difference <= tolerance, f"{name} differs by {difference:.2e}, allowed {tolerance:.0e}"


@contextmanager
def captured(model: MoAIForConditionalGeneration):
    """Collect ``hidden.N`` and ``mixer.N.in/out`` of every pass inside the block; the last pass wins."""
    states: dict[str, torch.Tensor] = {}

    def keep_layer(index: int):
        def hook(module: Any, args: Any, output: Any) -> None:
            states[f"hidden.{index}"] = output[0] if isinstance(output, tuple) else output

        return hook

    def keep_mixer(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        states[f"mixer.{kwargs['layer_idx']}.in"], states[f"mixer.{kwargs['layer_idx']}.out"] = args[0], output[0]

    layers = model.model.language_model.layers
    handles = [layer.register_forward_hook(keep_layer(index)) for index, layer in enumerate(layers)]
    handles.append(model.model.mixers.register_forward_hook(keep_mixer, with_kwargs=True))
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def run(model: MoAIForConditionalGeneration, inputs: dict[str, torch.Tensor], **kwargs: Any):
    with captured(model) as states, torch.no_grad():
        outputs = model(**inputs, output_routing=True, output_hidden_states=True, **kwargs)
    states["hidden.embed"], states["hidden.final_norm"] = outputs.hidden_states[0], outputs.hidden_states[-1]
    states["comp_aux"], states["image_features"] = outputs.auxiliary_hidden_states, outputs.image_hidden_states
    states["logits"] = outputs.logits
    for layer in outputs.routing:
        states[f"gate.{layer.layer_idx}.img.row0"] = layer.image[0]
        states[f"gate.{layer.layer_idx}.lang.row0"] = layer.language[0]
    return states


def tolerance_of(golden: GoldenMoAI, quantity: str) -> float:
    kind = quantity.split(".")[0]
    if quantity == "hidden.embed":
        return golden.tolerance("hidden.embed")
    return golden.tolerance({"hidden": "hidden.N", "mixer": "mixer.N"}.get(kind, kind))


def known_vocabulary(golden: GoldenMoAI, logits: torch.Tensor) -> torch.Tensor:
    """Ours has a row for the placeholder, the release's head need not."""
    return logits[..., : golden.config["output_rows"]]


def test_forward_equals_release_when_given_single_samples(golden, model):
    assert golden.samples, "the reference set holds no complete single run"
    for name in golden.samples:
        states = run(model, golden.inputs(name))
        states["logits"] = known_vocabulary(golden, states["logits"])
        references = {key.removeprefix(f"{name}.out."): key for key in golden.full if key.startswith(f"{name}.out.")}
        assert references.keys() <= states.keys()
        for quantity, key in references.items():
            close(states[quantity], golden.full[key], tolerance_of(golden, quantity), key)


def test_roles_equal_release_masks_when_inferred(golden, model):
    for name in golden.samples:
        inputs = golden.inputs(name)
        expected = run(model, inputs)["logits"]
        inputs.pop("mm_token_type_ids")
        assert torch.equal(run(model, inputs)["logits"], expected)


def test_logits_equal_release_when_auxiliary_embeddings_are_compressed_before(golden, model):
    for name in golden.samples:
        with torch.no_grad():
            states = model.model.compressor(golden.full[f"{name}.in.aux_embeds"])
        inputs = golden.prompt(name) | {
            "pixel_values": golden.full[f"{name}.in.pixel_values"],
            "auxiliary_states": states,
        }
        logits = known_vocabulary(golden, run(model, inputs)["logits"])
        close(logits, golden.full[f"{name}.out.logits"], golden.tolerance("logits"), name)


def test_map_features_equal_release_when_encoded_by_the_tower(golden, model):
    for name in golden.samples:
        with torch.no_grad():
            features = model.get_image_features(golden.full[f"{name}.in.map_pixel_values"]).pooler_output
        close(features, golden.full[f"{name}.in.map_embeds"], golden.tolerance("image_features"), name)


@pytest.mark.filterwarnings("ignore")
def test_generate_equals_release_when_greedy(golden, model):
    for name in golden.samples:
        tokens, logits = golden.full[f"{name}.gen.tokens"], golden.full[f"{name}.gen.logits"]
        inputs = golden.inputs(name)
        output = model.generate(
            **inputs,
            max_new_tokens=tokens.shape[1],
            do_sample=False,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
        assert output.sequences[:, inputs["input_ids"].shape[1] :].tolist() == tokens.tolist()
        ours = known_vocabulary(golden, torch.stack(output.logits, dim=1))
        close(ours, logits, golden.tolerance("logits"), f"{name}.gen.logits")


def test_decode_step_equals_release_when_cached(golden, model):
    for name in golden.samples:
        prefix = f"{name}.gen.step1."
        references = {key.removeprefix(prefix): value for key, value in golden.full.items() if key.startswith(prefix)}
        if not references:
            continue
        inputs = golden.inputs(name)
        with torch.no_grad():
            cache = model(**inputs, use_cache=True).cache
            token = golden.full[f"{name}.gen.tokens"][:, :1].long()
            mask = torch.cat([inputs["attention_mask"], torch.ones_like(token)], dim=1)
            with captured(model) as states:
                outputs = model(token, attention_mask=mask, cache=cache, output_hidden_states=True, use_cache=True)
        states["hidden.embed"], states["hidden.final_norm"] = outputs.hidden_states[0], outputs.hidden_states[-1]
        assert not [key for key in states if key.startswith("mixer")], "a decoded token must bypass the mixers"
        for quantity, reference in references.items():
            if quantity.startswith("mixer."):
                layer = quantity.split(".")[1]  # bypassed: what goes in comes out
                assert torch.equal(references[f"mixer.{layer}.in"], references[f"mixer.{layer}.out"])
            else:
                close(states[quantity], reference, tolerance_of(golden, quantity), prefix + quantity)


@pytest.mark.filterwarnings("ignore")
def test_generate_equals_release_when_three_beams(golden, model):
    runs = [name for name in golden.samples if f"{name}.beam3.tokens" in golden.full]
    assert runs
    for name in runs:
        tokens = golden.full[f"{name}.beam3.tokens"]
        inputs = golden.inputs(name)
        output = model.generate(
            **inputs,
            max_new_tokens=tokens.shape[1],
            num_beams=3,
            length_penalty=1.0,
            do_sample=False,
            eos_token_id=None,
            output_scores=True,
            return_dict_in_generate=True,
        )
        assert output.sequences[:, inputs["input_ids"].shape[1] :].tolist() == tokens.tolist()
        # fixtures: score = sum of log-probabilities / number of tokens, which is transformers' own
        close(output.sequences_scores, golden.full[f"{name}.beam3.scores"], golden.tolerance("logits"), name)


def test_demo_prompt_equals_release_when_last_positions_are_compared(golden, model):
    reference = golden.full["A_demo.out.logits"]
    inputs = golden.inputs("A") | golden.prompt("A_demo")
    logits = known_vocabulary(golden, run(model, inputs, logits_to_keep=reference.shape[1])["logits"])
    close(logits, reference, golden.tolerance("logits"), "A_demo")


def test_padded_batch_equals_our_singles_when_lengths_differ(golden, model):
    names = tuple(golden.samples)
    batch = run(model, golden.batch_inputs(names, "".join(names)))
    for row, name in enumerate(names):
        single = run(model, golden.inputs(name))
        length = single["logits"].shape[1]
        close(batch["comp_aux"][row], single["comp_aux"][0], golden.tolerance("comp_aux"), name)
        close(batch["logits"][row, -length:], single["logits"][0], golden.tolerance("logits"), name)


def test_padded_batch_equals_release_when_auxiliary_tokens_need_no_padding(golden, model):
    names = tuple(golden.samples)
    reference = golden.full["AB_auxA.out.logits"]
    inputs = golden.batch_inputs(names, "".join(names))
    first = golden.inputs(names[0])
    inputs["auxiliary_input_ids"] = first["auxiliary_input_ids"].expand(len(names), -1)
    inputs["auxiliary_attention_mask"] = torch.ones_like(inputs["auxiliary_input_ids"])
    inputs["auxiliary_pixel_values"] = first["auxiliary_pixel_values"].expand(len(names), -1, -1, -1)
    logits = run(model, inputs, logits_to_keep=reference.shape[1])["logits"]
    close(known_vocabulary(golden, logits), reference, golden.tolerance("logits"), "AB_auxA")


@pytest.mark.filterwarnings("ignore")
def test_generate_equals_our_singles_when_batched(golden, model):
    names = tuple(golden.samples)
    inputs = golden.batch_inputs(names, "".join(names))
    count = golden.full[f"{names[0]}.gen.tokens"].shape[1]
    tokens = model.generate(**inputs, max_new_tokens=count, do_sample=False, eos_token_id=None)
    tokens = tokens[:, inputs["input_ids"].shape[1] :]
    for row, name in enumerate(names):
        assert tokens[row].tolist() == golden.full[f"{name}.gen.tokens"][0].tolist()


def test_float32_gate_stays_near_release_when_that_rounds_it(golden, model):
    reference = golden.full["A_fp16gate.out.logits"]
    logits = run(model, golden.inputs("A"), logits_to_keep=reference.shape[1])["logits"]
    close(known_vocabulary(golden, logits), reference, golden.tolerance("A_fp16gate logits"), "A_fp16gate")


def test_half_precision_model_stays_near_release_when_both_are_half(golden):
    half = load_golden_model.__wrapped__(golden.folder).half()
    reference = golden.full["A_fp16.out.logits"]
    with torch.no_grad():
        states = half.model.compressor(golden.full["A_fp16.in.aux_embeds"])
    inputs = golden.prompt("A") | {"pixel_values": golden.full["A_fp16.in.pixel_values"], "auxiliary_states": states}
    states = run(half, inputs, logits_to_keep=reference.shape[1])
    assert states["logits"].dtype == torch.float16
    assert all(states[key].dtype == torch.float32 for key in states if key.startswith("gate."))
    close(known_vocabulary(golden, states["logits"]), reference, golden.tolerance("A_fp16 logits"), "A_fp16.out.logits")


def training_inputs(golden: GoldenMoAI) -> dict[str, Any]:
    """The fixture mixes the answer, which labels would prevent; the release's head has no placeholder."""
    return golden.inputs(golden.samples[0]) | golden.prompt("train") | {"suppress_image_token": True}


def training_loss(golden: GoldenMoAI, model: MoAIForConditionalGeneration, logits: torch.Tensor) -> torch.Tensor:
    return model.loss_function(logits, golden.full["train.in.labels"].long(), vocab_size=logits.shape[-1])


def training_routing(entry: dict[str, Any]) -> Routing | str:
    dice = entry["dice_per_mixer_layer_img_lang"]
    return Routing("random_expert", choices=tuple(map(tuple, dice))) if dice else "gated"


def test_training_losses_and_gradients_equal_release_when_its_dice_are_given(golden, model):
    raw_shapes = {name: tuple(tensor.shape) for name, tensor in golden.weights.items()}
    _, sizes = build_official_config(golden.config, raw_shapes)
    parameters = dict(model.named_parameters())

    def our_name(key: str) -> str:
        (name,) = convert_official_tensor(key, torch.empty(raw_shapes[key], device="meta"), sizes)
        return name

    inputs = training_inputs(golden)
    for run_name, entry in golden.fixtures["training"].items():
        model.zero_grad(set_to_none=True)
        with captured(model) as states:
            outputs = model(**inputs, routing=training_routing(entry), output_routing=True)
        loss = training_loss(golden, model, outputs.logits)
        loss.backward()
        assert loss.item() == pytest.approx(entry["loss"], abs=golden.tolerance("loss")), run_name
        for key, reference in golden.full.items():
            if key.startswith(f"{run_name}.mixer."):
                close(states[key.removeprefix(f"{run_name}.")], reference, golden.tolerance("mixer.N"), key)
        for layer in outputs.routing:
            for stream, weights in (("img", layer.image), ("lang", layer.language)):
                reference = golden.full.get(f"{run_name}.gate.{layer.layer_idx}.{stream}")
                if reference is not None:
                    close(weights[0], reference, golden.tolerance("gate"), f"{run_name} gate {stream}")
        last = golden.full[f"{run_name}.logits_last8"]
        logits = known_vocabulary(golden, outputs.logits[:, -last.shape[1] :])
        close(logits, last, golden.tolerance("logits"), run_name)
        for key, norm in entry["grad_norm"].items():
            gradient = parameters[our_name(key)].grad
            assert gradient.norm().item() == pytest.approx(norm, rel=0.01, abs=1e-6), f"{run_name} {key}"
        for key in entry["moai_params_without_grad"]:
            gradient = parameters[our_name(key)].grad
            assert gradient is None or not gradient.any(), f"{run_name}: {key} should have no gradient"
    model.zero_grad(set_to_none=True)


def test_losses_agree_when_dice_are_given_as_weights(golden, model):
    inputs = training_inputs(golden)
    for run_name, entry in golden.fixtures["training"].items():
        dice = entry["dice_per_mixer_layer_img_lang"]
        if not dice:
            continue
        weights = torch.nn.functional.one_hot(torch.tensor(dice), 3).float()  # (M, 2, 3)
        with torch.no_grad():
            loss = training_loss(golden, model, model(**inputs, routing=weights).logits).item()
        assert loss == pytest.approx(entry["loss"], abs=golden.tolerance("loss")), run_name
