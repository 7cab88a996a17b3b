"""Several processes, and processes that die: real ones, on the CPU."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from training_builders import REPO_ROOT, build_recipe, learned, run_process, start_process, write_tiny_checkpoint

pytest.importorskip("accelerate", reason='needs accelerate: pip install "moai-vlm[train]"')
pytest.importorskip("peft", reason='needs peft: pip install "moai-vlm[train]"')

from moai.training.metrics_logging import read_log  # noqa: E402
from moai.training.processes import check_num_processes  # noqa: E402
from moai.training.trainer import run_training  # noqa: E402

TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("base"))


def lines_of(folder: Path) -> list[dict]:
    return [learned(line) for line in read_log(folder / "log.jsonl")]


def kill_after(step: int, recipe: dict, number: int = signal.SIGKILL) -> int:
    """Start a run and end it as soon as its log tells of a step; its exit code."""
    process = start_process(recipe)
    log = Path(recipe["output_folder"]) / "log.jsonl"
    deadline = time.monotonic() + 300
    while not any(line["step"] >= step for line in read_log(log)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    return process.returncode


@pytest.mark.slow
def test_killed_run_equals_an_unbroken_one_when_started_again(checkpoint: Path, tmp_path: Path) -> None:
    options = {"optimization__num_steps": 9, "saving__every_steps": 2, "train__lora_dropout": 0.1, "seed": 5}
    run_process(build_recipe(checkpoint, tmp_path / "whole", **options))
    recipe = build_recipe(checkpoint, tmp_path / "broken", **options)
    assert kill_after(3, recipe) == -signal.SIGKILL
    assert kill_after(6, recipe, signal.SIGTERM) == 130  # saves and leaves
    assert "going on after step" in run_process(recipe)
    assert lines_of(tmp_path / "broken") == lines_of(tmp_path / "whole")
    assert [line["step"] for line in lines_of(tmp_path / "broken")] == list(range(1, 10))
    for name in ("checkpoints/step-00000009/model.safetensors", "checkpoints/step-00000009/optimizer.safetensors"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    final = [(tmp_path / run / "final/adapter_model.safetensors").read_bytes() for run in ("whole", "broken")]
    assert final[0] == final[1]
    assert "trained 9 steps" in run_process(recipe)  # once more: nothing is left to do


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_two_processes_learn_what_one_does_when_the_global_batch_is_the_same(
    checkpoint: Path, tmp_path: Path, stage: int
) -> None:
    held_out = {"sources": [{"scenes": {"length": 3, "split": "validation", "num_questions": 1, "image_size": 64}}]}
    options = {"optimization__micro_batch_size": 1, "train__lora_dropout": 0.1, "validation": held_out}
    run_training(build_recipe(checkpoint, tmp_path / "one", stage, **options))
    run_process(build_recipe(checkpoint, tmp_path / "two", stage, num_processes=2, **options), *TWO_PROCESSES)
    one, two = lines_of(tmp_path / "one"), lines_of(tmp_path / "two")
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-5)
    assert two[-1]["validation_loss"] == pytest.approx(one[-1]["validation_loss"], rel=1e-5)  # three samples, two ranks
    assert [line["gradient_norm"] for line in two] == pytest.approx([line["gradient_norm"] for line in one], rel=1e-4)
    assert [line["routing"]["language"]["auxiliary"] for line in two] == pytest.approx(
        [line["routing"]["language"]["auxiliary"] for line in one], rel=1e-5
    )


#: accelerate (1.15) shards on accelerators only. Told of processes that meet over gloo, it shards on CPUs as well.
SHARDING_DRIVER = """
import sys
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
PartialState._prepare_backend = lambda *others, **named: ("gloo", DistributedType.{kind})
PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
from moai.training.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def run_sharded(config: str, kind: str, recipe: dict, folder: Path) -> str:
    """Run a recipe on two CPU processes as a file of configs/accelerate says; its output."""
    settings = yaml.safe_load((REPO_ROOT / "configs/accelerate" / config).read_text(encoding="utf-8"))
    for name, value in (("settings", settings | {"num_processes": 2, "mixed_precision": "no"}), ("recipe", recipe)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(value), encoding="utf-8")
    (folder / "driver.py").write_text(SHARDING_DRIVER.format(kind=kind), encoding="utf-8")
    launcher = ("-m", "accelerate.commands.launch", "--config_file", str(folder / "settings.yaml"))
    port = ("--main_process_port", "0")  # any free one
    words = (*launcher, *port, str(folder / "driver.py"), "--debug", "--config", str(folder / "recipe.yaml"))
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO_ROOT), "DS_ACCELERATOR": "cpu"}
    run = subprocess.run([sys.executable, *words], cwd=folder, env=variables, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "config"), [(1, "fsdp2.yaml"), (2, "fsdp2.yaml"), (2, "deepspeed_zero3.yaml")])
def test_pieces_learn_what_one_process_does_and_go_on_when_stopped(
    checkpoint: Path, tmp_path: Path, stage: int, config: str
) -> None:
    if config.startswith("deepspeed"):  # stage 2 only: it steps experts that were not drawn, with a gradient of zero
        pytest.importorskip("deepspeed", reason="needs DeepSpeed: pip install deepspeed")
    kind = "MULTI_GPU" if config.startswith("fsdp") else "MULTI_CPU"
    run_training(build_recipe(checkpoint, tmp_path / "one", stage))
    recipe = build_recipe(checkpoint, tmp_path / "two", stage, num_processes=2)
    run_sharded(config, kind, recipe, tmp_path)
    one, two = lines_of(tmp_path / "one"), lines_of(tmp_path / "two")
    for name, error in (("loss", 1e-4), ("gradient_norm", 1e-3)):
        assert [line[name] for line in two] == pytest.approx([line[name] for line in one], rel=error)
    assert [line["routing"]["language"]["auxiliary"] for line in two] == pytest.approx(
        [line["routing"]["language"]["auxiliary"] for line in one], rel=1e-4
    )
    if stage == 1:  # a drawn expert alone has gradients; going on is the same in both
        return
    last = tmp_path / "two" / "checkpoints" / "step-00000004"
    unbroken = {name: load_file(last / name) for name in ("model.safetensors", "optimizer.safetensors")}
    shutil.rmtree(last)
    assert "going on after step 2" in run_sharded(config, kind, recipe, tmp_path)
    assert lines_of(tmp_path / "two") == two
    for name, tensors in unbroken.items():
        again = load_file(last / name)
        assert again.keys() == tensors.keys() and all(torch.equal(again[key], tensors[key]) for key in tensors), name


def test_number_of_processes_is_checked_when_fewer_were_started() -> None:
    check_num_processes(None, 1, {})
    check_num_processes(2, 2, {"WORLD_SIZE": "2"})
    with pytest.raises(ValueError, match="expected 2 processes.*got 1.*torchrun"):
        check_num_processes(2, 1, {})
    # What `accelerate launch --cpu --num_processes 2` leaves in the environment of its only process.
    trap = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    trap["ACCELERATE_MIXED_PRECISION"] = "no"
    with pytest.raises(ValueError, match="single process on CPUs"):
        check_num_processes(None, 1, trap)
