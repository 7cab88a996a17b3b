"""Every tensor of the original's reference outputs; sizes are read off them."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from sibling_outputs import load_sibling, with_prefix

from moai.checkpoints.io.key_check import check_keys
from moai.models.prismer.adaptor import Adaptor
from moai.models.prismer.configuration_prismer import EXPERTS, PrismerConfig
from moai.models.prismer.convert import build_config, convert_prismer_tensor
from moai.models.prismer.modeling_prismer import FREEZE_MODES, PrismerForConditionalGeneration
from moai.models.prismer.ranking import rank_answers
from moai.models.prismer.resampler import ExpertsResampler
from moai.models.prismer.vision_encoder import PrismerVisionEncoder

ATOL = 1e-5
FULL = ("prismer_full", "prismerz_full")


def convert(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: part for key, t in tensors.items() for name, part in convert_prismer_tensor(key, t).items()}


def read_maps(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A reference's experts' maps as our inputs: tables of features are painted into maps of labels."""
    maps = {}
    for expert in EXPERTS:
        key = "in." + {"seg": "seg_coco"}.get(expert, expert)
        if key in tensors:
            maps[f"{expert}_values"] = tensors[key]
        elif f"{key}.table" in tensors:
            painted = tensors[f"{key}.table"][tensors[f"{key}.label_map"].long()]
            maps[f"{expert}_values"] = painted.permute(0, 3, 1, 2)
    if "in.obj_detection.instance" in tensors:
        maps["instance_map"] = tensors["in.obj_detection.instance"]
    return maps


def draw_as_listed(monkeypatch: pytest.MonkeyPatch, rows: list[int]) -> None:
    """Let the next draws of rows be those that were drawn when the reference was made."""
    left = list(rows)
    monkeypatch.setattr(random, "randint", lambda low, high: left.pop(0))


def assert_near(got: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
    assert got.shape == wanted.shape, what
    assert (got - wanted).abs().max() <= ATOL, f"{what}: {(got - wanted).abs().max()}"


@pytest.mark.parametrize("place", ["early", "late"])
def test_adaptor_equals_the_original_when_normed_early_or_late(golden_dir: Path, place: str) -> None:
    facts, tensors = load_sibling(golden_dir, "prismer_adaptor")
    adaptor = Adaptor(facts["args"]["embed_dim"], is_normed_late=place == "late")
    names = with_prefix(tensors, f"sd.{place}.")
    adaptor.load_state_dict(
        {n.replace("adaptor_ln.", "norm.").removeprefix("adaptor."): tensor for n, tensor in names.items()}
    )
    assert_near(adaptor(tensors[f"{place}.x"]), tensors[f"{place}.out"], place)


@pytest.mark.parametrize("name", ["prismer_resampler_a", "prismer_resampler_b"])
def test_resampler_equals_the_original_when_run(golden_dir: Path, name: str) -> None:
    facts, tensors = load_sibling(golden_dir, name)
    sizes = facts["args"]
    resampler = ExpertsResampler(sizes["width"], sizes["layers"], sizes["heads"], sizes["num_latents"])
    prefix = "expert_encoder.resampler."
    converted = convert({prefix + key: tensor for key, tensor in with_prefix(tensors, "sd.").items()})
    resampler.load_state_dict(with_prefix(converted, "model.vision_encoder.resampler."))
    with torch.inference_mode():
        out = resampler(tensors["x"].transpose(0, 1)).transpose(0, 1)
    assert_near(out, tensors["out"], name)


def build_vision_encoder(
    facts: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> tuple[PrismerConfig, PrismerVisionEncoder]:
    sizes = facts["args"]
    width = sizes["width"]
    config = PrismerConfig(
        vision_config={
            "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": sizes["layers"],
            "num_attention_heads": sizes["heads"], "patch_size": sizes["patch_size"],
            "image_size": sizes["input_resolution"], "hidden_act": "quick_gelu",
        },
        text_config={"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 8},
        experts=[expert for expert in EXPERTS if expert in sizes["experts"]],
        num_latents=facts["num_latents"], resampler_layers=facts["resampler_layers"],
        resampler_heads=facts["resampler_heads"], draws_instance_rows=True,
        label_size=sizes["experts"].get("seg", 64),
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    encoder = PrismerVisionEncoder(config).eval()
    converted = convert({f"expert_encoder.{key}": tensor for key, tensor in with_prefix(tensors, "sd.").items()})
    encoder.load_state_dict(with_prefix(converted, "model.vision_encoder."))
    return config, encoder


@pytest.mark.parametrize("part", ["p16_all", "p14_all", "p16_depth_seg", "p16_rgb_only"])
def test_vision_encoder_equals_the_original_at_every_box_when_run(
    golden_dir: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, tensors = load_sibling(golden_dir, f"prismer_vision_{part}")
    config, encoder = build_vision_encoder(facts, tensors)
    seen: dict[str, torch.Tensor] = {}
    for name, stem in encoder.stems.items():
        stem.register_forward_hook(lambda module, args, output, name=name: seen.update({f"stem_out.{name}": output}))
    encoder.pre_layernorm.register_forward_pre_hook(
        lambda module, args: seen.update(tokens_before_ln_pre=args[0].transpose(0, 1))
    )
    if config.experts:
        encoder.resampler.register_forward_hook(
            lambda module, args, output: seen.update(
                resampler_in=args[0].transpose(0, 1), resampler_out=output.transpose(0, 1)
            )
        )
    draw_as_listed(monkeypatch, facts.get("instance_embedding_row_per_value", []))
    maps = read_maps(tensors)
    instance_map = maps.pop("instance_map", None)
    values = {name.removesuffix("_values"): tensor for name, tensor in maps.items()}
    with torch.inference_mode():
        seen["out"] = encoder(tensors["in.rgb"], values, instance_map).transpose(0, 1)
    compared = {key for key in tensors if not key.startswith(("sd.", "in."))}
    assert compared == seen.keys()
    for key in sorted(compared):
        assert_near(seen[key], tensors[key], key)


@pytest.fixture(params=FULL)
def full(request: pytest.FixtureRequest, golden_dir: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], Any]:
    facts, tensors = load_sibling(golden_dir, request.param)
    weights = with_prefix(tensors, "sd.")
    shapes = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    config = build_config(shapes, facts["vision"]["heads"], facts["roberta"]["num_attention_heads"])
    config.draws_instance_rows = True
    model = PrismerForConditionalGeneration(config).eval()
    check_keys("the reference", shapes, convert_prismer_tensor, PrismerForConditionalGeneration, model.config, "")
    model.load_state_dict(convert(weights), strict=False)
    model.tie_weights()
    return facts, tensors, model


def encode(facts: dict[str, Any], tensors: dict[str, torch.Tensor], model: Any) -> torch.Tensor:
    random.seed(facts["python_random_seed"])  # the original's draw, not only its rows
    with torch.inference_mode():
        return model.encode_images(tensors["in.rgb"], **read_maps(tensors))


def test_encoder_output_equals_the_original_when_rows_are_drawn(full: Any) -> None:
    facts, tensors, model = full
    assert_near(encode(*full).clone(), tensors["encoder_out_bld"], "encoder_out_bld")
    if tensors.get("in.obj_detection.instance") is not None:
        values = tensors["in.obj_detection.instance"].unique().tolist()
        assert values == facts["instance_unique_values_in_order"]


@pytest.mark.parametrize("part", ["cap_noprefix", "cap_prefix", "vqa_train", "rank_cap", "vqa_rank"])
def test_logits_and_losses_equal_the_original_when_trained_or_ranked(full: Any, part: str) -> None:
    _, tensors, model = full
    given = with_prefix(tensors, f"{part}.")
    states = encode(*full)
    with torch.inference_mode():
        output = model(
            given["input_ids"],
            given["attention_mask"],
            encoder_hidden_states=states.repeat_interleave(len(given["input_ids"]) // len(states), dim=0),
            labels=given["labels"],
            sample_weights=given.get("weights"),
        )
    assert_near(output.logits, given["logits"], "logits")
    assert torch.allclose(output.sample_losses, given["loss"], atol=ATOL, rtol=1e-6)
    if "final_loss" in given:
        assert torch.allclose(output.loss, given["final_loss"], atol=ATOL, rtol=1e-6)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("part", ["gen_noprefix", "gen_prefix", "vqa_gen"])
def test_beams_equal_the_original_when_generated(full: Any, part: str, use_cache: bool) -> None:
    facts, tensors, model = full
    given = with_prefix(tensors, f"{part}.")
    sequences = model.generate(
        input_ids=given["input_ids"],
        attention_mask=given.get("attention_mask", torch.ones_like(given["input_ids"])),
        encoder_hidden_states=encode(*full),
        use_cache=use_cache,
        **facts[part]["args"],
    )
    assert torch.equal(sequences, given["sequences"])
    words = [
        " ".join(f"w{i}" for i in row if i > 3)
        for row in sequences[:, given["input_ids"].shape[1] if part != "gen_noprefix" else 1 :].tolist()
    ]
    assert words == facts[part]["decoded"]


@pytest.mark.parametrize("part", ["rank_cap", "vqa_rank"])
def test_ranking_equals_the_original_when_answers_are_given(full: Any, part: str) -> None:
    _, tensors, model = full
    given, states = with_prefix(tensors, f"{part}."), encode(*full)
    answers, mask = tensors["rank_cap.answer_ids"], tensors.get("vqa_gen.attention_mask")
    mask = torch.ones_like(given["start_ids"]) if part == "rank_cap" else mask
    with torch.inference_mode():
        start = model(given["start_ids"], mask, encoder_hidden_states=states)
    assert_near(start.logits[:, -1], given["start_logits"], "start_logits")
    num_candidates = len(given["input_ids"]) // len(states)
    ranked = rank_answers(model, states, given["start_ids"], mask, answers, num_candidates)
    assert ranked.best.tolist() == given["best_answer_index"].tolist()
    asked = given["input_ids"][:, given["start_ids"].shape[1] :]
    assert torch.equal(answers[ranked.candidates.flatten()], asked)
    tokens = given["labels"].ne(-100).sum(dim=1)
    assert torch.allclose(ranked.scores.flatten(), -given["loss"] / tokens, atol=ATOL)


@pytest.mark.parametrize("mode", list(FREEZE_MODES))
def test_what_learns_equals_the_original_when_frozen(full: Any, mode: str) -> None:
    facts, tensors, model = full
    model.freeze(mode)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    listed = facts["freeze_modes"][mode]
    if mode == "none":
        assert listed == "all trainable" and len(learning) == len(list(model.parameters()))
        return
    weights = with_prefix(tensors, "sd.")
    named = listed["trainable"]
    assert learning == convert({key: weights[key] for key in named}).keys()
    assert not any(re.search(r"running_|num_batches", name) for name in named)
