"""Tensor parallelism as `from_pretrained(..., distributed_config=DistributedConfig(tp_size=2))` sets it up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from builders import FAMILIES, build_tiny_model
from torch.nn import Linear

REPO_ROOT = Path(__file__).resolve().parents[4]


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
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    paths = os.pathsep.join([str(REPO_ROOT), str(REPO_ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths}
    command = [sys.executable, *launcher, str(REPO_ROOT / "tests" / "tensor_parallel.py"), str(tmp_path)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("two processes answer as one") == 4, run.stdout
