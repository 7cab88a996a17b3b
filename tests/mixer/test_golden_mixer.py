"""Experts, gates and whole mixers against the released code, part by part."""

from __future__ import annotations

import itertools

import pytest
import torch
from golden_outputs import GoldenMoAI, load_golden_model

from mixer import Mixers, Routing, TokenStream
from moai.checkpoints.convert.official_keys import EXPERTS


@pytest.fixture(scope="module")
def golden(golden_dir) -> GoldenMoAI:
    return GoldenMoAI(golden_dir / "moai")


@pytest.fixture(scope="module")
def mixers(golden) -> Mixers:
    return load_golden_model(golden.folder).model.mixers


def assert_close(golden: GoldenMoAI, ours: torch.Tensor, reference: torch.Tensor, key: str) -> None:
    """Tolerances of modules are for values of unit variance."""
    difference = (ours - reference).abs().max().item() / max(1.0, reference.std().item())
    assert difference <= golden.tolerance("modules"), f"{key} differs by {difference:.2e}"


def test_expert_equals_release_when_given_its_queries_and_keys(golden, mixers):
    outputs = {key: value for key, value in golden.modules.items() if key.startswith("mhla.") and key.endswith(".out")}
    assert len(outputs) >= len(EXPERTS)
    query, key_value = golden.modules["mhla.q"][None], golden.modules["mhla.kv"][None]
    for key, reference in outputs.items():
        _, layer, name, _ = key.split(".")
        stream, place = EXPERTS[name]
        expert = getattr(mixers.layers[mixers.layer_indices.index(int(layer))], stream)[place]
        source = query if name.startswith("moai_SA") else key_value
        with torch.no_grad():
            spoken = query + expert(query, source, None)  # the residual is the mixer layer's task
        assert_close(golden, spoken[0], reference, key)


def block_mixers(golden: GoldenMoAI, mixers: Mixers, routing: Routing):
    is_image = golden.modules["block.im_mask"]
    streams = {"image": TokenStream.from_roles(is_image), "language": TokenStream.from_roles(~is_image)}
    with torch.no_grad():
        return mixers(
            golden.modules["block.in"],
            layer_idx=mixers.layer_indices[0],
            auxiliary_states=golden.modules["block.aux"],
            routing=routing,
            **streams,
        )


@pytest.mark.parametrize("mode", ["moai_eval", "moai_step2"])
def test_mixer_equals_release_when_gated(golden, mixers, mode):
    mixed, routing = block_mixers(golden, mixers, Routing("gated"))
    pairs = {"mixed": mixed, "gate_img": routing.image[0], "gate_lang": routing.language[0]}
    for name, ours in pairs.items():
        assert_close(golden, ours, golden.modules[f"block.{mode}.{name}"], name)


@pytest.mark.parametrize(("image", "language"), list(itertools.product(range(3), repeat=2)))
def test_mixer_equals_release_when_one_expert_is_chosen(golden, mixers, image, language):
    choices = ((image, language),) * len(mixers.layer_indices)
    mixed, _ = block_mixers(golden, mixers, Routing("random_expert", choices=choices))
    key = f"block.moai_step1.img{image}_lang{language}.mixed"
    assert_close(golden, mixed, golden.modules[key], key)


def test_mixer_differs_from_release_when_another_expert_is_chosen(golden, mixers):
    """The comparison above can fail: experts are not interchangeable."""
    mixed, _ = block_mixers(golden, mixers, Routing("random_expert", choices=((0, 0),) * len(mixers.layer_indices)))
    assert (mixed - golden.modules["block.moai_step1.img1_lang2.mixed"]).abs().max() > 0.1
