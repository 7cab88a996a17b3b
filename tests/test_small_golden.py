"""Compressor, mixer and whole tiny models give the committed numbers (tests/make_small_golden.py), anywhere."""

import pytest
import torch
from make_small_golden import (
    GOLDEN_FOLDER,
    GRADIENT_TOLERANCE,
    TOLERANCE,
    build_model,
    compute,
    compute_model,
    list_files,
    list_models,
)
from safetensors.torch import load_file


def excess(ours: dict[str, torch.Tensor], name: str) -> float:
    """The largest difference from the committed numbers in units of what is allowed; tokens must be equal."""
    reference = load_file(GOLDEN_FOLDER / f"{name}.safetensors")
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in reference.items()}
    found = []
    for key, value in reference.items():
        difference = ((ours[key] - value).abs().max() / value.abs().max().clamp_min(1)).item()
        allowed = {"gradient_norms": GRADIENT_TOLERANCE, "tokens": 1e-9}.get(key, TOLERANCE)
        found.append(difference / allowed)
    return max(found)


@pytest.mark.parametrize("name", list_files())
def test_outputs_are_the_committed_ones_when_computed(name: str) -> None:
    assert excess(compute(name), name) <= 1


@pytest.mark.parametrize("name", ["model_qwen2_4", "model_perceiver"])
def test_outputs_are_the_committed_ones_when_another_kernel_attends(name: str) -> None:
    model = build_model(**list_models()[name])
    model.set_attn_implementation("eager")
    assert excess(compute_model(model), name) <= 0.5


@pytest.mark.parametrize("part", ["compressor", "mixers", "multi_modal_projector", "vision_tower", "lora_b", "lm_head"])
def test_outputs_are_seen_to_differ_when_a_part_is_off_by_a_hundredth(part: str) -> None:
    """The comparison above can fail."""
    model = build_model(**list_models()["model_qwen3_4"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.mul_(1.01)
    ours = compute_model(model) | {"tokens": load_file(GOLDEN_FOLDER / "model_qwen3_4.safetensors")["tokens"]}
    assert excess(ours, "model_qwen3_4") > 10


def test_files_are_those_of_the_command_and_small_when_listed() -> None:
    files = list(GOLDEN_FOLDER.iterdir())
    assert {file.stem for file in files} == set(list_files())
    assert sum(file.stat().st_size for file in files) < 300_000
