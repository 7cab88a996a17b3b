"""PEFT's prompt encoders, which `train.adapter` uses, against reference outputs of PEFT and of P-tuning's own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sibling_outputs import load_sibling, with_prefix

pytest.importorskip("peft", reason='needs peft: pip install "moai-vlm[train]"')

from peft import PromptEncoder, PromptEncoderConfig  # noqa: E402

ATOL = 1e-5


def build_encoder(state: dict[str, torch.Tensor], kind: str, **sizes: Any) -> PromptEncoder:
    num_virtual, width = state["embedding.weight"].shape
    config = PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=num_virtual, token_dim=width, num_transformer_submodules=1,
        encoder_reparameterization_type=kind, encoder_dropout=0.0, **sizes,
    )  # fmt: skip
    encoder = PromptEncoder(config)
    encoder.load_state_dict(state)
    return encoder.eval()


def check(encoder: PromptEncoder, tensors: dict[str, torch.Tensor], indices: torch.Tensor) -> None:
    found = encoder(indices)
    torch.testing.assert_close(found, tensors["out"], atol=ATOL, rtol=0)
    (found * tensors["grad_w"]).sum().backward()
    torch.testing.assert_close(encoder.embedding.weight.grad, tensors["grad_embedding"], atol=ATOL, rtol=0)


def test_mlp_encoder_is_peft_s_when_its_tensors_are_loaded(golden_dir: Path) -> None:
    account, tensors = load_sibling(golden_dir, "ptuning_peft_mlp")
    size = account["args"]["encoder_hidden_size"]
    check(build_encoder(with_prefix(tensors, "sd."), "MLP", encoder_hidden_size=size), tensors, tensors["indices"])


@pytest.mark.parametrize("prefix", ["", "one_layer."])
def test_lstm_encoder_is_peft_s_when_its_tensors_are_loaded(golden_dir: Path, prefix: str) -> None:
    account, tensors = load_sibling(golden_dir, "ptuning_peft_lstm")
    args = account["args"]["one_layer"] if prefix else account["args"]
    sizes = {name: args[name] for name in ("encoder_hidden_size", "encoder_num_layers")}
    part = with_prefix(tensors, prefix)
    check(build_encoder(with_prefix(part, "sd."), "LSTM", **sizes), part, part["indices"])


def test_the_paper_s_encoder_is_peft_s_lstm_of_half_the_width(golden_dir: Path) -> None:
    account, tensors = load_sibling(golden_dir, "ptuning_official_lama")
    width = account["args"]["hidden_size"]
    encoder = build_encoder(with_prefix(tensors, "sd."), "LSTM", encoder_hidden_size=width // 2, encoder_num_layers=2)
    indices = torch.arange(sum(account["args"]["template"]))
    check(encoder, tensors, indices[None] if tensors["out"].ndim == 3 else indices)


@pytest.mark.parametrize("kind", ["lstm", "mlp"])
def test_the_few_shot_code_s_encoders_are_refused_by_their_shapes(golden_dir: Path, kind: str) -> None:
    _, tensors = load_sibling(golden_dir, "ptuning_official_fewshot")
    state = with_prefix(tensors, f"{kind}.sd.")
    state = {name: t for name, t in state.items() if not name.startswith("model.")}
    state["embedding.weight"] = state.pop("prompt_embeddings.weight")
    with pytest.raises(RuntimeError, match="size mismatch|Missing key"):
        build_encoder(state, kind.upper(), encoder_hidden_size=state["embedding.weight"].shape[1])
