"""Several processes, and processes that die: real ones, on the CPU."""

import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from forked_processes import ForkedProcess
from safetensors.torch import load_file
from training_builders import REPO_ROOT, build_recipe, learned, run_in_turn, write_tiny_checkpoint

pytest.importorskip("accelerate", reason='needs accelerate: pip install "moai-vlm[train]"')
pytest.importorskip("peft", reason='needs peft: pip install "moai-vlm[train]"')

from moai.training.metrics_logging import read_log  # noqa: E402
from moai.training.processes import check_num_processes  # noqa: E402
from moai.training.trainer import run_training  # noqa: E402


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("base"))


def lines_of(folder: Path) -> list[dict]:
    return [learned(line) for line in read_log(folder / "log.jsonl")]


def kill_after(step: int, recipe: dict) -> int:
    """Start a run and kill it as soon as its log tells of a step; its exit code."""
    process = ForkedProcess(lambda: run_training(recipe), ACCELERATE_USE_CPU="1")
    log = Path(recipe["output_folder"]) / "log.jsonl"
    deadline = time.monotonic() + 300
    while not any(line["step"] >= step for line in read_log(log)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=60)
    return process.returncode


@pytest.mark.slow
def test_killed_run_equals_an_unbroken_one_when_started_again(checkpoint: Path, tmp_path: Path) -> None:
    options = {"optimization__num_steps": 9, "saving__every_steps": 2, "train__lora_dropout": 0.1, "seed": 5}
    broken, whole = (build_recipe(checkpoint, tmp_path / name, **options) for name in ("broken", "whole"))
    assert kill_after(3, broken) == -signal.SIGKILL
    told = run_in_turn([broken, whole, broken])  # the last one has nothing left to do
    assert "going on after step" in told and told.count("is in") == 3
    assert lines_of(tmp_path / "broken") == lines_of(tmp_path / "whole")
    assert [line["step"] for line in lines_of(tmp_path / "broken")] == list(range(1, 10))
    for name in ("checkpoints/step-00000009/model.safetensors", "checkpoints/step-00000009/optimizer.safetensors"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    final = [(tmp_path / run / "final/adapter_model.safetensors").read_bytes() for run in ("whole", "broken")]
    assert final[0] == final[1]


@pytest.mark.slow
def test_two_processes_learn_what_one_does_when_the_global_batch_is_the_same(checkpoint: Path, tmp_path: Path) -> None:
    held_out = {"sources": [{"scenes": {"length": 3, "split": "validation", "num_questions": 1, "image_size": 64}}]}
    options = {"optimization__micro_batch_size": 1, "train__lora_dropout": 0.1, "validation": held_out}
    shared = []
    for stage in (1, 2):
        run_training(build_recipe(checkpoint, tmp_path / f"one-{stage}", stage, **options))
        shared.append(build_recipe(checkpoint, tmp_path / f"two-{stage}", stage, num_processes=2, **options))
    run_in_turn(shared, 2)
    for stage in (1, 2):
        one, two = lines_of(tmp_path / f"one-{stage}"), lines_of(tmp_path / f"two-{stage}")
        assert_alike(one, two, 1e-5, 1e-4)
        # three samples, two ranks
        assert two[-1]["validation_loss"] == pytest.approx(one[-1]["validation_loss"], rel=1e-5)


def assert_alike(one: list[dict], two: list[dict], error: float, norm_error: float) -> None:
    """Losses, gradients and routing of two logs."""
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=error)
    assert [line["gradient_norm"] for line in two] == pytest.approx(
        [line["gradient_norm"] for line in one], rel=norm_error
    )
    assert [line["routing"]["language"]["auxiliary"] for line in two] == pytest.approx(
        [line["routing"]["language"]["auxiliary"] for line in one], rel=error
    )


def run_sharded(config: str, recipes: list[dict], folder: Path) -> str:
    """Run recipes on two CPU processes as a file of configs/accelerate says; their output."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
    from torch.distributed.fsdp import fully_shard  # noqa: F401 - so that not every process imports it

    settings = yaml.safe_load((REPO_ROOT / "configs/accelerate" / config).read_text(encoding="utf-8"))
    (folder / "settings.yaml").write_text(
        yaml.safe_dump(settings | {"num_processes": 2, "mixed_precision": "no"}), encoding="utf-8"
    )
    words = ["--config_file", str(folder / "settings.yaml"), "--main_process_port", "0", "script.py"]
    chosen, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    if is_zero := config.startswith("deepspeed"):
        _, environment = prepare_deepspeed_cmd_env(chosen)
    else:
        environment = prepare_multi_gpu_env(chosen)
    kind = DistributedType.MULTI_CPU if is_zero else DistributedType.MULTI_GPU

    def shard_on_cpus() -> None:
        """accelerate (1.15) shards on accelerators only. Told of processes that meet over gloo, it does on CPUs too."""
        PartialState._prepare_backend = lambda *others, **named: ("gloo", kind)
        PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
        if PartialState._shared_state:  # a run leaves behind that it sharded, which the next one finds out anew
            PartialState._shared_state["distributed_type"] = kind

    return run_in_turn(recipes, 2, shard_on_cpus, **environment | {"DS_ACCELERATOR": "cpu"})


@pytest.mark.slow
@pytest.mark.parametrize(("stages", "config"), [((1, 2), "fsdp2.yaml"), ((2,), "deepspeed_zero3.yaml")])
def test_pieces_learn_what_one_process_does_and_go_on_when_stopped(
    checkpoint: Path, tmp_path: Path, stages: tuple[int, ...], config: str
) -> None:
    if config.startswith("deepspeed"):  # stage 2 only: it steps experts that were not drawn, with a gradient of zero
        pytest.importorskip("deepspeed", reason="needs DeepSpeed: pip install deepspeed")
    names = ["model.safetensors", "optimizer.safetensors"]
    options = {}
    if config == "fsdp2.yaml":
        options["optimization__averaged_share"] = 0.5
        names.append("extra.safetensors")
    recipes = []
    for stage in stages:
        run_training(build_recipe(checkpoint, tmp_path / f"one-{stage}", stage, **options))
        recipes.append(build_recipe(checkpoint, tmp_path / f"two-{stage}", stage, num_processes=2, **options))
    run_sharded(config, recipes, tmp_path)
    for stage in stages:
        assert_alike(lines_of(tmp_path / f"one-{stage}"), lines_of(tmp_path / f"two-{stage}"), 1e-4, 1e-3)
    last, two = tmp_path / "two-2" / "checkpoints" / "step-00000004", lines_of(tmp_path / "two-2")
    unbroken = {name: load_file(last / name) for name in names}
    for name, tensors in unbroken.items():  # whole, whatever the number of processes
        expected = load_file(tmp_path / "one-2" / "checkpoints" / last.name / name)
        assert tensors.keys() == expected.keys(), name
        assert all(torch.allclose(tensors[key], value, rtol=1e-2, atol=1e-3) for key, value in expected.items()), name
    one, whole = (load_file(tmp_path / run / "final" / "adapter_model.safetensors") for run in ("one-2", "two-2"))
    assert one.keys() == whole.keys()
    assert all(torch.allclose(whole[name], value, rtol=1e-2, atol=1e-3) for name, value in one.items())
    shutil.rmtree(last)  # a drawn expert alone has gradients in stage 1; going on is the same in both
    assert "going on after step 2" in run_sharded(config, recipes[-1:], tmp_path)
    assert lines_of(tmp_path / "two-2") == two
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
