"""The plan of a training: its arithmetic, and what the command says of it."""

import json
from pathlib import Path

import pytest
from forked_processes import in_a_fork
from training_builders import REPO_ROOT, write_tiny_checkpoint
from typer.testing import CliRunner

pytest.importorskip("peft", reason='needs peft: pip install "moai-vlm[train]"')

from moai.cli import app  # noqa: E402
from moai.planning.training import Cluster, StepCount, count_step, plan_step  # noqa: E402

COUNT = StepCount(
    num_parameters=1000, num_trained=100, num_linear=800, num_copied=50, num_layers=4, parts={}, flops=25 * 10**11,
    fixed_bytes=10**8, sample_bytes=10**9, width=2,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _count_in_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moai.planning.training.count_step", in_a_fork(count_step))


def test_plan_adds_up_when_done_by_hand() -> None:
    cluster = Cluster(1, memory_gb=80, peak_tflops=1.0, efficiency=0.5, bandwidth_gb=1)
    row = plan_step(COUNT, cluster, num_samples=64, batch_size=8)
    assert row.weights == (900 + 50) * 2 and row.trained == 1600
    assert row.micro_batch == 8 and row.activations == 8.1e9
    assert row.peak == row.weights + row.trained + row.activations
    assert row.step_s == pytest.approx(8 * 2.5 / 0.5) and row.hours == pytest.approx(row.step_s * 8 / 3600)
    quantized = plan_step(COUNT, cluster, num_samples=64, batch_size=8, is_quantized=True)
    assert quantized.weights < 0.5 * row.weights


def test_plan_says_that_nothing_fits_when_memory_is_small() -> None:
    assert plan_step(COUNT, Cluster(1, memory_gb=0.5), num_samples=64, batch_size=8).micro_batch == 0


def test_more_gpus_take_less_time_when_the_batch_is_shared() -> None:
    hours = [plan_step(COUNT, Cluster(n), num_samples=640, batch_size=64).hours for n in (1, 8, 64)]
    assert hours[0] > hours[1] > hours[2]
    sharded = plan_step(COUNT, Cluster(8), num_samples=640, batch_size=64, is_sharded=True)
    assert sharded.trained < COUNT.trained_bytes / 7


def plan(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["plan", *words])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def test_command_plans_a_recipe_when_named(tmp_path: Path) -> None:
    recipe = ["--config", str(REPO_ROOT / "configs" / "train_stage2.yaml")]
    recipe += [
        "--set",
        f"model.path={write_tiny_checkpoint(tmp_path / 'm')}",
        "--set",
        "optimization.micro_batch_size=2",
    ]
    recipe += ["--prompt-tokens", "7", "--auxiliary-tokens", "5", "--max-new-tokens", "6"]
    row = json.loads(plan(*recipe, "--gpus", "1,8", "--json"))
    assert [(one["mode"], one["num_gpus"]) for one in row["plans"]] == [
        ("as the recipe says", 1), ("as the recipe says", 8), ("with nf4", 1), ("with nf4", 8), ("with FSDP2", 8),
    ]  # fmt: skip
    assert row["num_trained"] == sum(part["trained"] for part in row["parts"].values()) > 0
    assert row["parts"]["gates"]["trained"] > 0 and row["parts"]["vision_tower"]["trained"] == 0
    first = json.loads(plan(*recipe, "--set", "stage=1", "--gpus", "1", "--json"))
    assert first["flops"] < row["flops"]  # two of three experts are idle
    assert "| as the recipe says | 1 |" in plan(*recipe, "--gpus", "1")


def test_command_names_the_next_step_when_recipe_and_model_do_not_fit(tmp_path: Path) -> None:
    from flamingo_builders import save_flamingo

    folder = save_flamingo(tmp_path)
    told = plan(str(folder), "--config", str(REPO_ROOT / "configs" / "train_stage1.yaml"), code=1)
    assert "got one for another model" in told and "a flamingo" in told
