"""Tensor parallelism as `from_pretrained(..., distributed_config=DistributedConfig(tp_size=2))` sets it up."""

from pathlib import Path

import pytest
from builders import FAMILIES, build_tiny_model
from forked_processes import run_ranks
from tensor_parallel import compare_checkpoints
from torch.nn import Linear


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("plora_rank", [0, 4])
def test_plan_names_modules_that_are_there_when_linears_are_wrapped(family: str, plora_rank: int) -> None:
    model = build_tiny_model(family, plora_rank=plora_rank)
    modules = dict(model.named_modules())
    planned = {name.replace("*", "0") for name in model.tp_plan}
    assert planned <= modules.keys()
    assert "lm_head" in planned and "model.language_model.embed_tokens" in planned
    layer = modules["model.language_model.layers.0"]
    linears = {name for name, module in layer.named_modules() if type(module) is Linear}
    assert {f"model.language_model.layers.0.{name}" for name in linears} <= planned


@pytest.mark.slow
def test_two_processes_answer_and_learn_as_one_when_a_checkpoint_is_cut(tmp_path: Path) -> None:
    for family in ("llama", "qwen3"):
        for is_tied in (False, True):
            name = f"{family}-{'tied' if is_tied else 'untied'}"
            plora_rank = 4 if (family == "llama") == is_tied else 0
            text = {"tie_word_embeddings": is_tied}
            model = build_tiny_model(family, text=text, tie_word_embeddings=is_tied, plora_rank=plora_rank)
            model.save_pretrained(tmp_path / name)
    printed = run_ranks(lambda: compare_checkpoints(tmp_path), 2, CUDA_VISIBLE_DEVICES="")
    assert printed.count("two processes answer as one") == 4, printed
