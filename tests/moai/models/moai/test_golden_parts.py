"""Vision tower, projector, partial LoRA, feed-forward, attention block and rotary tables against the released code."""

from __future__ import annotations

import re

import pytest
import torch
from golden_outputs import GoldenMoAI, load_golden_model
from transformers import LlamaConfig, LlamaModel

from moai.checkpoints.convert.position_table import resize_position_table
from moai.models.moai.injection import prepare_decoder
from moai.models.moai.internlm2 import build_rope_parameters, derive_attention_sizes, split_fused_rows
from moai.models.moai.partial_lora import image_positions_scope


@pytest.fixture(scope="module")
def golden(golden_dir) -> GoldenMoAI:
    return GoldenMoAI(golden_dir / "moai")


@pytest.fixture(scope="module")
def body(golden):
    return load_golden_model(golden.folder).model


@pytest.fixture(scope="module")
def check(golden):
    """Compare within the modules' tolerance, which is for values of unit variance."""

    def compare(ours: torch.Tensor, key: str) -> None:
        reference = golden.modules[key]
        difference = (ours - reference).abs().max().item() / max(1.0, reference.std().item())
        assert difference <= golden.tolerance("modules"), f"{key} differs by {difference:.2e}"

    return compare


def test_vision_tower_and_projector_equal_release_when_given_pixels(golden, body, check):
    pixels = golden.modules["vit.in"]
    with torch.no_grad():
        states = body.vision_tower(pixels, output_hidden_states=True)
        layer = body.config.vision_feature_layer
        features = states.last_hidden_state if layer == -1 else states.hidden_states[layer]
        check(features[:, 1:] if golden.config["vision"]["drop_cls"] else features, "vit.out")
        check(body.get_image_features(pixels).pooler_output, "vision_proj.out")


def test_position_table_equals_release_when_resized(golden, check):
    table, grid = golden.modules["resize_pos.in"], round((golden.modules["resize_pos.out"].shape[0] - 1) ** 0.5)
    check(resize_position_table(table, grid), "resize_pos.out")


def test_norm_equals_release_when_given_states(golden, body, check):
    norms = {f"layers.{index}": layer.input_layernorm for index, layer in enumerate(body.language_model.layers)}
    norms["norm"] = body.language_model.norm
    states, reference = golden.modules["rmsnorm.in"], golden.modules["rmsnorm.out"]
    with torch.no_grad():
        differences = {name: (norm(states) - reference).abs().max().item() for name, norm in norms.items()}
    # fixtures.json does not say which layer's norm it is; exactly the right one may agree.
    assert min(differences.values()) <= golden.tolerance("modules"), differences


@pytest.fixture(scope="module")
def fused(golden, body):
    """Our three projections of the first mixer layer, rows put back in the release's fused order."""
    sizes = derive_attention_sizes(golden.config, {name: tuple(t.shape) for name, t in golden.weights.items()})
    order = split_fused_rows(torch.arange(sizes.fused_rows), sizes)
    attention = body.language_model.layers[body.mixers.layer_indices[0]].self_attn

    def project(states: torch.Tensor) -> torch.Tensor:
        parts = [attention.q_proj(states), attention.k_proj(states), attention.v_proj(states)]
        return torch.cat(parts, dim=-1)[..., torch.cat(order).argsort()]

    return project


@pytest.mark.parametrize(
    ("key", "has_images"), [("plora.out", True), ("plora.out_mask_none", None), ("plora.out_no_image", False)]
)
def test_partial_lora_equals_release_when_images_are_marked(golden, fused, check, key, has_images):
    mask = golden.modules["plora.im_mask"]
    positions = {True: mask, False: torch.zeros_like(mask), None: None}[has_images]
    with torch.no_grad(), image_positions_scope(positions):
        check(fused(golden.modules["plora.in"]), key)


def test_feed_forward_equals_release_when_images_are_marked(golden, body, check):
    with torch.no_grad(), image_positions_scope(golden.modules["plora.im_mask"]):
        check(body.language_model.layers[0].mlp(golden.modules["plora.in"]), "mlp.out")


def test_attention_block_equals_release_when_given_mixed_states(golden, body, check):
    """From what attention sees to what it gives: fused projection, rotary positions, grouped heads, output."""
    decoder = body.language_model
    attention = decoder.layers[body.mixers.layer_indices[0]].self_attn
    modes = [key.split(".")[1:-1] for key in golden.modules if key.startswith("block.") and key.endswith(".out")]
    assert len(modes) >= 10
    for mode in (".".join(parts) for parts in modes):
        mixed = golden.modules[f"block.{mode}.mixed"]
        length = mixed.shape[1]
        tables = decoder.rotary_emb(mixed, torch.arange(length)[None])
        causal = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
        with torch.no_grad(), image_positions_scope(golden.modules["block.im_mask"]):
            output, _ = attention(mixed, position_embeddings=tables, attention_mask=causal)
        check(output, f"block.{mode}.out")


def dynamic_decoder(golden: GoldenMoAI, maximum: int, factor: float, head_dim: int) -> LlamaModel:
    scaling = {"rope_theta": golden.config["rope_theta"], "rope_scaling": {"type": "dynamic", "factor": factor}}
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=2 * head_dim,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=maximum,
        rope_parameters=build_rope_parameters(scaling),
    )
    decoder = LlamaModel(config)
    prepare_decoder(decoder, plora_rank=0, plora_alpha=1.0)
    return decoder


def test_dynamic_rotary_tables_equal_release_when_longer_than_trained(golden, check):
    pattern = re.compile(r"(rope_dynamic\.max(\d+)\.factor([\d.]+)\.len(\d+))\.cos")
    cases = [match for key in golden.modules if (match := pattern.fullmatch(key))]
    assert any(int(case[4]) > int(case[2]) for case in cases), "no case is longer than max_position_embeddings"
    for case in cases:
        length = int(case[4])
        decoder = dynamic_decoder(golden, int(case[2]), float(case[3]), golden.modules[case[0]].shape[1])
        cos, sin = decoder.rotary_emb(torch.zeros(1, length, 1), torch.arange(length)[None])
        check(cos[0], f"{case[1]}.cos")
        check(sin[0], f"{case[1]}.sin")
