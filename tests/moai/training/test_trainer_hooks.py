"""What a task keeps beside its model: a teacher that follows it and a queue, after kills and errors."""

import os
import signal
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forked_processes import ForkedProcess
from torch import nn
from torch.nn import functional as F
from training_builders import learned

pytest.importorskip("accelerate", reason='needs accelerate: pip install "moai-vlm[train]"')

from moai.training.checkpoints import CheckpointError, find_newest_checkpoint, read_checkpoint  # noqa: E402
from moai.training.metrics_logging import read_log  # noqa: E402
from moai.training.processes import start_accelerator  # noqa: E402
from moai.training.task import Batch, Task  # noqa: E402
from moai.training.train_settings import (  # noqa: E402
    OptimizationSettings,
    RunSettings,
    SavingSettings,
    WatchingSettings,
)
from moai.training.trainer import Trainer  # noqa: E402

WIDTH, BATCH_SIZE, QUEUE_SIZE, NUM_STEPS = 12, 8, 20, 12


class TeacherTask(Task):
    """Contrast with a queue of what a slow copy of the model said; the copy and the queue are no parameters."""

    fixed_settings = frozenset({"optimization.micro_batch_size"})

    def __init__(self, fails_at: int | None = None, is_killed: bool = False, queue_size: int = QUEUE_SIZE) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.1), nn.Linear(WIDTH, WIDTH))
        self.teacher = deepcopy(self.model).requires_grad_(False).eval()
        self.register_buffer("queue", F.normalize(torch.randn(queue_size, WIDTH), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self.fails_at, self.is_killed, self.done = fails_at, is_killed, 0
        self.found: list[torch.Tensor] = []

    def batches(self, first_step: int, last_step: int, rank: int, num_ranks: int) -> Iterator[Batch]:
        self.done = first_step
        for step in range(first_step, last_step):
            numbers = torch.randn(BATCH_SIZE, WIDTH, generator=torch.Generator().manual_seed(step))
            for rows in numbers.split(4)[rank::num_ranks]:
                yield Batch(rows, float(len(rows)))

    def forward(self, inputs):
        with torch.no_grad():
            keys = F.normalize(self.teacher(inputs), dim=1)
        self.found.append(keys)
        if self.done == self.fails_at and len(self.found) == 2:  # the step is half done
            if self.is_killed:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("the disk is gone")
        queries = F.normalize(self.model(inputs), dim=1)
        logits = queries @ torch.cat([keys, self.queue]).T / 0.1
        return F.cross_entropy(logits, torch.arange(len(queries)), reduction="sum"), {}

    def after_step(self, step: int) -> None:
        self.done = step
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
                slow.lerp_(fast, 0.1)
        keys = torch.cat(self.found)
        self.queue[(int(self.place) + torch.arange(len(keys))) % len(self.queue)] = keys
        self.place.add_(len(keys))
        self.found.clear()

    def extra_state(self):
        return {"queue": self.queue, "place": self.place} | dict(self.teacher.named_parameters(prefix="teacher"))


def settings_of(folder: Path, **optimization) -> RunSettings:
    chosen = {"num_steps": NUM_STEPS, "batch_size": BATCH_SIZE, "micro_batch_size": 4, "learning_rate": 5e-2}
    return RunSettings(
        output_folder=folder,
        optimization=OptimizationSettings(**(chosen | optimization)),
        saving=SavingSettings(every_steps=5),
        watching=WatchingSettings(every_steps=1, is_live=False),
    )


def run(folder: Path, task: Task, **optimization) -> int:
    settings = settings_of(folder, **optimization)
    return Trainer(settings, task, NUM_STEPS, start_accelerator(settings)).run()[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run."""
    folder = tmp_path_factory.mktemp("hooks") / "whole"
    assert run(folder, TeacherTask()) == NUM_STEPS
    return folder


def check_equal(whole: Path, other: Path) -> None:
    for name in ("model.safetensors", "optimizer.safetensors", "extra.safetensors"):
        files = [each / "checkpoints" / f"step-{NUM_STEPS:08d}" / name for each in (whole, other)]
        assert files[0].read_bytes() == files[1].read_bytes(), name
    lines = [[learned(line) for line in read_log(each / "log.jsonl")] for each in (whole, other)]
    assert lines[0] == lines[1]


def test_teacher_and_queue_equal_those_of_an_unbroken_run_when_killed(whole: Path, tmp_path: Path) -> None:
    process = ForkedProcess(lambda: run(tmp_path / "run", TeacherTask(8, True)), ACCELERATE_USE_CPU="1")
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output
    assert find_newest_checkpoint(tmp_path / "run" / "checkpoints")[0].name == "step-00000005"
    assert run(tmp_path / "run", TeacherTask()) == NUM_STEPS
    check_equal(whole, tmp_path / "run")


def test_step_that_failed_half_way_is_made_again_from_the_state_before_it(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the disk is gone"):
        run(tmp_path / "run", TeacherTask(8))
    assert find_newest_checkpoint(tmp_path / "run" / "checkpoints")[0].name == "step-00000008"
    assert run(tmp_path / "run", TeacherTask()) == NUM_STEPS
    check_equal(whole, tmp_path / "run")


def test_resume_is_refused_when_a_fixed_setting_or_the_state_is_another(whole: Path) -> None:
    with pytest.raises(CheckpointError, match=r"`optimization\.micro_batch_size` was 4 and is 8"):
        run(whole, TeacherTask(), micro_batch_size=8)
    with pytest.raises(CheckpointError, match=r"'queue' has shape \(20, 12\) there and \(16, 12\) here"):
        run(whole, TeacherTask(queue_size=16))

    class Forgetful(TeacherTask):
        def extra_state(self):
            return {}

    with pytest.raises(CheckpointError, match="'place' has shape"):
        run(whole, Forgetful())


def test_broken_state_is_not_saved(tmp_path: Path) -> None:
    class Broken(TeacherTask):
        def after_step(self, step: int) -> None:
            super().after_step(step)
            if step == 5:  # which is saved
                self.queue[0, 0] = float("nan")

    with pytest.raises(ValueError, match="got others in 'queue'"):
        run(tmp_path / "run", Broken())
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_the_result_is_the_mean_of_the_last_weights_when_a_share_is_averaged(tmp_path: Path) -> None:
    task = TeacherTask()
    settings = settings_of(tmp_path / "run", averaged_share=0.5)
    settings = replace(settings, saving=SavingSettings(every_steps=1, keep=NUM_STEPS))
    Trainer(settings, task, NUM_STEPS, start_accelerator(settings)).run()
    stored = [read_checkpoint(tmp_path / f"run/checkpoints/step-{step:08d}")[0] for step in range(1, NUM_STEPS + 1)]
    for name, value in task.model.named_parameters():
        expected = torch.stack([weights[name] for weights in stored[NUM_STEPS // 2 :]]).mean(0)
        torch.testing.assert_close(value.detach(), expected, rtol=1e-5, atol=1e-7)
        assert not torch.equal(value, stored[-1][name])


def test_the_mean_is_that_of_an_unbroken_run_when_stopped_within_it(tmp_path: Path) -> None:
    run(tmp_path / "whole", whole := TeacherTask(), averaged_share=0.75)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        run(tmp_path / "run", TeacherTask(8), averaged_share=0.75)
    run(tmp_path / "run", resumed := TeacherTask(), averaged_share=0.75)
    check_equal(tmp_path / "whole", tmp_path / "run")
    run(tmp_path / "run", again := TeacherTask(), averaged_share=0.75)  # nothing is left to do: the same result
    for name, value in whole.model.named_parameters():
        for other in (resumed, again):
            assert torch.equal(value, dict(other.model.named_parameters())[name])
    with pytest.raises(CheckpointError, match="averaged_share` was 0.75 and is 0.5"):
        run(tmp_path / "run", TeacherTask(), averaged_share=0.5)


def test_the_last_validation_is_that_of_the_result_when_a_share_is_averaged(tmp_path: Path) -> None:
    class Validated(TeacherTask):
        num_validation_batches = 1

        def validation_batch(self, place: int) -> Batch:
            return Batch(torch.ones(4, WIDTH), 4.0)

        def forward(self, inputs):
            return super().forward(inputs) if self.training else (self.model(inputs).square().sum(), {})

    run(tmp_path / "run", task := Validated(), averaged_share=0.5)
    measured = [line["validation_loss"] for line in read_log(tmp_path / "run/log.jsonl") if "validation_loss" in line]
    with torch.no_grad():
        expected = task.model.eval()(torch.ones(4, WIDTH)).square().sum().item() / 4
    assert measured == [pytest.approx(expected)]


def test_the_mean_is_refused_when_weights_have_running_statistics(tmp_path: Path) -> None:
    class Normalised(TeacherTask):
        def __init__(self) -> None:
            super().__init__()
            self.model.append(nn.BatchNorm1d(WIDTH))

    with pytest.raises(ValueError, match="without batch normalisation"):
        run(tmp_path / "run", Normalised(), averaged_share=0.5)
    with pytest.raises(ValueError, match=r"averaged_share` must be in \[0, 1\], got 2"):
        OptimizationSettings(num_steps=1, averaged_share=2)
