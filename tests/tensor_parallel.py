"""Run by test_tensor_parallelism.py in two processes: a checkpoint cut in two answers as it does whole."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from builders import build_tiny_inputs, real_word_logits
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from transformers.distributed import DistributedConfig

from moai import MoAIForConditionalGeneration


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor all processes hold together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def check_answers(cut: MoAIForConditionalGeneration, plain: MoAIForConditionalGeneration) -> None:
    """Logits, and generation with growing and static caches."""
    inputs = build_tiny_inputs(plain.config)
    with torch.no_grad():
        expected, got = plain(**inputs).logits, cut(**inputs).logits
        suppressed = cut(**inputs, suppress_image_token=True).logits
    torch.testing.assert_close(real_word_logits(got), real_word_logits(expected), atol=1e-5, rtol=1e-5)
    assert (suppressed[..., plain.config.image_token_id] == torch.finfo(got.dtype).min).all()
    for kind in ("dynamic", "static"):
        settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": -1, "cache_implementation": kind}
        assert torch.equal(cut.generate(**inputs, **settings), plain.generate(**inputs, **settings)), kind


def check_gradients(cut: MoAIForConditionalGeneration, plain: MoAIForConditionalGeneration) -> None:
    """One backward pass in float64: every parameter's gradient, whether the parameter is cut or whole."""
    inputs = build_tiny_inputs(plain.config, (6, 5))
    inputs["labels"] = torch.full_like(inputs["input_ids"], -100)
    inputs["labels"][:, -2:] = inputs["input_ids"][:, -2:]
    inputs["mm_token_type_ids"][:, -2:] = 0
    for model in (cut, plain):
        model(**inputs).loss.backward()
    expected = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.grad is not None}
    got = {name: parameter.grad for name, parameter in cut.named_parameters() if parameter.grad is not None}
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        error = (whole(got[name]) - gradient).abs().max()
        assert error <= 1e-9 * gradient.abs().max() + 1e-12, (name, error)


def load(folder: Path, dtype: torch.dtype) -> tuple[MoAIForConditionalGeneration, MoAIForConditionalGeneration]:
    """The checkpoint in two pieces, and whole."""
    in_two = DistributedConfig(tp_size=2)
    cut = MoAIForConditionalGeneration.from_pretrained(folder, dtype=dtype, distributed_config=in_two)
    return cut, MoAIForConditionalGeneration.from_pretrained(folder, dtype=dtype)


def compare_checkpoints(checkpoints: Path) -> None:
    """Compare every checkpoint of a folder, cut and whole."""
    for folder in sorted(path for path in checkpoints.iterdir() if path.is_dir()):
        cut, plain = load(folder, torch.float32)
        kept = load_file(folder / "model.safetensors")
        pieces = {name for name, parameter in cut.named_parameters() if isinstance(parameter, DTensor)}
        assert any("lora_a" in name for name in pieces) == any("lora_a" in name for name in kept)
        assert any("embed_tokens" in name for name in pieces) and any("o_proj" in name for name in pieces)
        assert (cut.lm_head.weight is cut.get_input_embeddings().weight) == plain.config.tie_word_embeddings
        check_answers(cut, plain)
        check_gradients(*load(folder, torch.float64))
        cut.save_pretrained(folder / "again")
        if dist.get_rank() == 0:
            again = load_file(folder / "again" / "model.safetensors")
            assert again.keys() - kept.keys() <= {"lm_head.weight"}  # transformers also writes a head that is tied
            assert all(torch.equal(again[name], kept[name]) for name in kept)
            print(f"{folder.name}: two processes answer as one")
    dist.destroy_process_group()
