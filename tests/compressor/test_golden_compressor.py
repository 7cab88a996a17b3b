"""The perceiver compressor against the released resampler."""

from __future__ import annotations

import pytest
import torch
from golden_outputs import GoldenMoAI, load_golden_model


@pytest.fixture(scope="module")
def golden(golden_dir) -> GoldenMoAI:
    return GoldenMoAI(golden_dir / "moai")


@pytest.fixture(scope="module")
def compressor(golden):
    return load_golden_model(golden.folder).model.compressor


def test_compressor_equals_release_when_given_its_tokens(golden, compressor):
    with torch.no_grad():
        latents = compressor(golden.modules["resampler.in"])
    assert (latents - golden.modules["resampler.out"]).abs().max() <= golden.tolerance("modules")


def test_compressor_equals_release_when_tokens_come_in_two_parts(golden, compressor):
    tokens = golden.modules["resampler.in"]
    with torch.no_grad():
        latents = compressor(tokens[:, :5], None, tokens[:, 5:])  # words, then the map's patches
    assert (latents - golden.modules["resampler.out"]).abs().max() <= golden.tolerance("modules")


def test_compressor_equals_release_when_padding_is_masked(golden, compressor):
    tokens = golden.modules["resampler.in"]
    padding = torch.full_like(tokens[:, :3], 7.0)
    mask = torch.cat([torch.zeros(tokens.shape[0], 3), torch.ones(tokens.shape[:2])], dim=1)
    with torch.no_grad():
        latents = compressor(torch.cat([padding, tokens], dim=1), mask)
    assert (latents - golden.modules["resampler.out"]).abs().max() <= golden.tolerance("modules")
