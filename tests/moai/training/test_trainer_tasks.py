"""The trainer on a task that knows nothing of MoAI: a small network that learns a fixed map."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn
from training_builders import learned

pytest.importorskip("accelerate", reason='needs accelerate: pip install "moai-vlm[train]"')

from moai.training.checkpoints import CheckpointError, find_newest_checkpoint, read_checkpoint  # noqa: E402
from moai.training.metrics_logging import MetricsLogger, read_log  # noqa: E402
from moai.training.optimizers import build_optimizers  # noqa: E402
from moai.training.processes import start_accelerator  # noqa: E402
from moai.training.task import Batch, Task  # noqa: E402
from moai.training.train_settings import (  # noqa: E402
    OptimizationSettings,
    RunSettings,
    SavingSettings,
    WatchingSettings,
)
from moai.training.trainer import Trainer  # noqa: E402

WIDTH, BATCH_SIZE = 20, 8


class MapTask(Task):
    """Learn the negative of what comes in; dropout draws random numbers."""

    def __init__(self, micro_batch_size: int = 4, seed: int = 0, dropout: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(dropout), nn.Linear(WIDTH, WIDTH))
        self.micro_batch_size, self.seed = micro_batch_size, seed

    def batches(self, first_step: int, last_step: int, rank: int, num_ranks: int) -> Iterator[Batch]:
        for step in range(first_step, last_step):
            numbers = torch.randn(BATCH_SIZE, WIDTH, generator=torch.Generator().manual_seed(step + self.seed))
            for rows in numbers.split(self.micro_batch_size)[rank::num_ranks]:
                yield Batch({"rows": rows}, float(len(rows)))

    def forward(self, inputs):
        rows = inputs["rows"]
        missed = (self.model(rows) + rows).square().mean(dim=1)
        return missed.sum(), {"missed": missed.detach().sum(), "signs": (rows > 0).sum(dim=0)}

    def part_of(self, name: str) -> str:
        return "last" if name.startswith("2.") else "first"

    def report(self, counters):
        return {"mean missed": float(counters["missed"]), "signs": counters["signs"].tolist()}

    def identity(self):
        return {"seed_of_data": self.seed}


def settings_of(folder: Path, num_steps: int = 12, validate: int = 0, every: int = 1, **optimization) -> RunSettings:
    chosen = {"num_steps": num_steps, "batch_size": BATCH_SIZE, "micro_batch_size": 4, "learning_rate": 5e-2}
    return RunSettings(
        output_folder=folder,
        optimization=OptimizationSettings(**(chosen | optimization)),
        saving=SavingSettings(every_steps=5),
        watching=WatchingSettings(every_steps=every, validate_every_steps=validate, is_live=False),
    )


def run(settings: RunSettings, task: Task) -> tuple[int, float | None]:
    return Trainer(settings, task, settings.optimization.num_steps, start_accelerator(settings)).run()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_loss_falls_and_a_resumed_run_equals_an_unbroken_one(
    tmp_path: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = (settings_of(tmp_path / name, optimizer=optimizer) for name in ("whole", "broken"))
    assert run(whole, MapTask())[0] == 12
    lines = read_log(whole.output_folder / "log.jsonl")
    assert sum(line["loss"] for line in lines[-3:]) < 0.9 * sum(line["loss"] for line in lines[:3])

    record = MetricsLogger.record

    def stop(self, step, *arguments):
        record(self, step, *arguments)
        if step == 6:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(MetricsLogger, "record", stop)
    assert run(broken, MapTask())[0] == 7  # the wish is heard in the sums of the next step
    monkeypatch.setattr(MetricsLogger, "record", record)
    assert run(broken, MapTask())[0] == 12
    for name in ("model.safetensors", "optimizer.safetensors"):
        files = [each.output_folder / "checkpoints" / "step-00000012" / name for each in (whole, broken)]
        assert files[0].read_bytes() == files[1].read_bytes(), name
    assert list(map(learned, read_log(broken.output_folder / "log.jsonl"))) == list(map(learned, lines))
    _, moments, _ = read_checkpoint(find_newest_checkpoint(whole.output_folder / "checkpoints")[0])
    kinds = {key.rpartition(".")[2] for key in moments if key.startswith("0.weight")}
    assert kinds == ({"momentum_buffer"} if optimizer == "muon" else {"step", "exp_avg", "exp_avg_sq"})


class FailingTask(MapTask):
    """With running statistics, and an error at one place of one step."""

    def __init__(self, error: BaseException | float | None = None, place: str = "", fails_after: int = 7) -> None:
        super().__init__(dropout=0.0)
        self.model.insert(1, nn.BatchNorm1d(WIDTH))
        self.error, self.place, self.fails_after = error, place, fails_after

    def batches(self, first_step: int, last_step: int, rank: int, num_ranks: int) -> Iterator[Batch]:
        for number, batch in enumerate(super().batches(first_step, last_step, rank, num_ranks)):
            is_due = first_step + number // 2 == self.fails_after and number % 2  # in the second micro-batch
            if is_due and self.place == "data":
                raise self.error
            batch.inputs["is_due"] = is_due
            yield batch

    def forward(self, inputs):
        loss, counters = super().forward(inputs)
        if inputs["is_due"] and self.place == "step":
            raise self.error
        return (loss * self.error if inputs["is_due"] and self.place == "loss" else loss), counters

    @property
    def num_validation_batches(self) -> int:
        return 1

    def validation_batch(self, place: int) -> Batch:
        if self.place == "validation":
            raise self.error
        return Batch({"rows": torch.ones(BATCH_SIZE, WIDTH), "is_due": False}, float(BATCH_SIZE))

    def part_of(self, name: str) -> str:
        return ""


FAILURES = [
    (KeyError("image"), "data", 7),
    (MemoryError(), "step", 7),
    (RuntimeError("CUDA out of memory"), "step", 7),
    (SystemExit(3), "step", 7),
    (ValueError("bad"), "validation", 9),
    (float("nan"), "loss", 7),
    (float("inf"), "loss", 7),
]


@pytest.mark.parametrize(("error", "place", "done"), FAILURES)
def test_run_that_an_error_ends_equals_an_unbroken_one_when_started_again(
    tmp_path: Path, error, place: str, done: int, capsys: pytest.CaptureFixture
) -> None:
    whole, broken = (settings_of(tmp_path / name, validate=9, every=4) for name in ("whole", "broken"))
    run(whole, FailingTask())
    is_number = isinstance(error, float)
    kind = ValueError if is_number else type(error)
    with pytest.raises(kind, match="expected a finite loss, got (nan|inf) at step 8" if is_number else None):
        run(broken, FailingTask(error, place))
    told = capsys.readouterr().err
    assert f"stopped by {kind.__name__} after step {done}: step {done} of 12 is saved in {tmp_path}" in told
    assert "the same command goes on from there" in told
    assert find_newest_checkpoint(broken.output_folder / "checkpoints")[0].name == f"step-{done:08d}"
    assert run(broken, FailingTask())[0] == 12
    for name in ("model.safetensors", "optimizer.safetensors"):
        files = [each.output_folder / "checkpoints" / "step-00000012" / name for each in (whole, broken)]
        assert files[0].read_bytes() == files[1].read_bytes(), name
    lines = [[learned(line) for line in read_log(each.output_folder / "log.jsonl")] for each in (whole, broken)]
    if place == "validation":  # what failed is not measured later; its step counts in the next line
        assert [[line["step"] for line in each] for each in lines] == [[4, 8, 9, 12], [4, 8, 12]]
        assert lines[1][2]["loss"] == pytest.approx((lines[0][2]["loss"] + 3 * lines[0][3]["loss"]) / 4)
    else:
        assert lines[0] == lines[1]


def test_message_says_what_is_there_when_nothing_is_saved_or_nothing_may_be(tmp_path: Path, capsys) -> None:
    with pytest.raises(ValueError, match="expected a finite loss, got nan at step 1"):
        run(settings_of(tmp_path / "first"), FailingTask(float("nan"), "loss", 0))
    assert "after step 0: no step is saved; the same command begins anew." in capsys.readouterr().err
    assert not (tmp_path / "first" / "checkpoints").exists()

    class Overflowing(MapTask):
        def part_of(self, name: str) -> str:
            return ""

        def forward(self, inputs):
            return super().forward(inputs)[0] * 1e30, {}

        def report(self, counters):
            return {}

    with pytest.raises(ValueError, match="expected a finite gradient norm, got (inf|nan) at step 1"):
        run(settings_of(tmp_path / "second"), Overflowing())
    settings = settings_of(tmp_path / "third")

    class Spoiled(FailingTask):
        def batches(self, *arguments):
            for number, batch in enumerate(super().batches(*arguments)):
                if number == 14:  # after step 7
                    with torch.no_grad():
                        self.model[0].bias[0] = float("nan")
                yield batch

    with pytest.raises(ValueError, match="finite loss"):
        run(settings, Spoiled())
    told = capsys.readouterr().err
    assert "steps 6 to 7 are lost: expected finite weights after step 7, got others in '0.bias'" in told
    assert "step 5 of 12 is saved" in told
    weights, _, state = read_checkpoint(find_newest_checkpoint(settings.output_folder / "checkpoints")[0])
    assert state["step"] == 5 and all(value.isfinite().all() for value in weights.values())


def test_second_run_in_a_folder_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "run", 6)

    class Meeting(MapTask):
        def batches(self, *arguments):
            for number, batch in enumerate(super().batches(*arguments)):
                if number == 5:
                    with ThreadPoolExecutor(1) as threads, pytest.raises(ValueError, match="another process is writ"):
                        threads.submit(run, settings, MapTask()).result(60)
                yield batch

    assert run(settings, Meeting())[0] == 6


def test_counters_are_summed_over_micro_batches_and_reported(tmp_path: Path) -> None:
    losses = {}
    for size in (2, 8):
        settings = settings_of(tmp_path / str(size), 3, micro_batch_size=size)
        run(settings, MapTask(size, dropout=0.0))
        lines = read_log(settings.output_folder / "log.jsonl")
        losses[size] = [line["loss"] for line in lines]
        for step, line in enumerate(lines):
            numbers = torch.randn(BATCH_SIZE, WIDTH, generator=torch.Generator().manual_seed(step))
            assert line["signs"] == (numbers > 0).sum(dim=0).tolist()
            assert line["mean missed"] == pytest.approx(line["loss"] * BATCH_SIZE, rel=1e-5)
    assert losses[2] == pytest.approx(losses[8], rel=1e-5)


def test_run_is_refused_when_its_data_changed_or_its_batches_cannot_be_shared(tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "run", 2)
    run(settings, MapTask())
    with pytest.raises(CheckpointError, match="got other data"):
        run(settings, MapTask(seed=1))
    accelerator = start_accelerator(settings)
    three = type("Three", (), {"num_processes": 3, "distributed_type": accelerator.distributed_type})
    with pytest.raises(ValueError, match="multiple of micro_batch_size x processes"):
        Trainer(settings, MapTask(), 2, three())


def test_matrices_go_to_muon_and_parts_have_their_rates_when_asked_for() -> None:
    chosen = OptimizationSettings(num_steps=1, optimizer="muon", learning_rate=0.1, learning_rates={"last": 0.5})
    task = MapTask()
    muon, adamw = build_optimizers(task.model, chosen, task.part_of, task.decays)
    assert isinstance(muon, torch.optim.Muon) and isinstance(adamw, torch.optim.AdamW)
    names = {parameter: name for name, parameter in task.model.named_parameters()}
    rates = {
        names[parameter]: (type(optimizer), group["peak"], group["weight_decay"] > 0)
        for optimizer in (muon, adamw)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert rates == {
        "0.weight": (torch.optim.Muon, 0.1, True),
        "2.weight": (torch.optim.Muon, 0.5, True),
        "0.bias": (torch.optim.AdamW, 0.1, False),
        "2.bias": (torch.optim.AdamW, 0.5, False),
    }
