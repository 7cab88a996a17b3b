"""Runs that an error or a signal ends, with helpers and several processes: what is done is kept, a line says so."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from forked_processes import ForkedProcess, run_module, start_ranks
from training_builders import REPO_ROOT, build_recipe, write_tiny_checkpoint

pytest.importorskip("accelerate", reason='needs accelerate: pip install "moai-vlm[train]"')
pytest.importorskip("peft", reason='needs peft: pip install "moai-vlm[train]"')

from moai.data.collator import CollatedBatches, iterate_batches  # noqa: E402
from moai.training.launcher import LAUNCHER  # noqa: E402
from moai.training.loading import load_batches  # noqa: E402
from moai.training.metrics_logging import read_log  # noqa: E402
from moai.training.trainer import run_training  # noqa: E402


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("base"))


class Broken:
    """A dataset with one item that cannot be had."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        if index == 2:
            try:
                raise OSError("deeper")
            except OSError as cause:
                raise self.error from cause
        return index


LONG = "train.jsonl:3: expected an image\nin two lines"


class TwoWords(ValueError):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ValueError(LONG), ValueError, LONG),
        (KeyError("pixels"), KeyError, "'pixels'"),
        (TwoWords("one", "two"), RuntimeError, "one two"),
        (MemoryError(), MemoryError, ""),
    ],
)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_error_of_a_helper_comes_without_its_traceback(error, kind, message: str, num_workers: int) -> None:
    from torch.utils.data import DataLoader

    seen = []
    batches = CollatedBatches(Broken(error), list)
    with pytest.raises(kind) as caught:
        seen.extend(iterate_batches(DataLoader(batches, None, sampler=[[0], [1], [2], [3]], num_workers=num_workers)))
    assert str(caught.value) == message and len(seen) == 2


def write_recipe(recipe: dict) -> str:
    file = Path(recipe["output_folder"]).with_suffix(".yaml")
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return str(file)


def start(command: list[str], cwd: Path = REPO_ROOT, **environment: str) -> subprocess.Popen[str]:
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO_ROOT)} | environment
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=cwd, env=variables, **pipes)


def fork_command(recipe: dict) -> ForkedProcess:
    """`moai train`, leading a group of its own."""
    file = write_recipe(recipe)

    def train() -> None:
        os.setpgid(0, 0)
        run_module("moai", "train", "--config", file)

    return ForkedProcess(train)


def wait_for(step: int, folder: Path, process: subprocess.Popen[str] | ForkedProcess) -> None:
    deadline = time.monotonic() + 400
    while not any(line["step"] >= step for line in read_log(folder / "log.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_two_processes_save_and_leave_when_their_launcher_is_stopped(
    checkpoint: Path, tmp_path: Path, number: signal.Signals
) -> None:
    options = {"optimization__num_steps": 500, "saving__every_steps": 0, "optimization__micro_batch_size": 1}
    file = write_recipe(build_recipe(checkpoint, tmp_path / "run", **options))
    process = start([sys.executable, "-m", "moai", "train", "--config", file, "--processes", "2"])
    wait_for(2, tmp_path / "run", process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 130, output
    (kept,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert f"stopped after step {int(kept.name[5:])}; the same command goes on" in output
    assert "Traceback" not in output


def test_second_command_is_refused_with_the_first_named_while_that_trains(checkpoint: Path, tmp_path: Path) -> None:
    recipe = build_recipe(checkpoint, tmp_path / "run", optimization__num_steps=500, saving__every_steps=0)
    first = fork_command(recipe)
    wait_for(1, tmp_path / "run", first)
    with pytest.raises(ValueError, match=rf"\(process {first.pid} on "):
        run_training(recipe)
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    assert first.communicate(timeout=400)[0] and first.returncode == 130


FAILING = """
import os, sys
from moai.training.processes import start_accelerator
from moai.training.task import Batch, Task
from moai.training.train_settings import RunSettings, load_any_settings
from moai.training.trainer import Trainer
import torch

class Failing(Task):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = torch.nn.Linear(3, 3)

    def batches(self, first, last, rank, num_ranks):
        for step in range(first, last):
            if step == 3 and rank == int(sys.argv[2]):
                raise ValueError(f"bad row of process {rank}")
            yield Batch(torch.full((2, 3), step + 1.0), 2.0)

    def forward(self, inputs):
        return self.model(inputs).square().sum(), {}

optimization = {"num_steps": 6, "batch_size": 2, "micro_batch_size": 1}
settings = load_any_settings(RunSettings, {"output_folder": sys.argv[1], "optimization": optimization})
try:
    Trainer(settings, Failing(), 6, start_accelerator(settings)).run()
except ValueError as error:
    print(f"error: {error}", flush=True)
    sys.exit(1)
"""


def check_failed(folder: Path, rank: int, output: str) -> None:
    assert f"error: bad row of process {rank}" in output and "after step 3: step 3 of 6 is saved in" in output
    state = json.loads((folder / "checkpoints/step-00000003/state.json").read_text(encoding="utf-8"))
    assert state["step"] == 3


@pytest.mark.parametrize("rank", [0, 1])
def test_steps_are_kept_when_one_of_two_processes_fails(tmp_path: Path, rank: int) -> None:
    def fail() -> None:
        sys.argv = ["failing.py", str(tmp_path / "run"), str(rank)]
        exec(FAILING, {})

    ranks = start_ranks(fail, 2, ACCELERATE_USE_CPU="1")
    outputs = [process.communicate()[0] for process in ranks]
    assert [process.returncode for process in ranks] == [1, 1], outputs
    check_failed(tmp_path / "run", rank, "".join(outputs))


@pytest.mark.slow
def test_steps_are_kept_when_the_launcher_ends_the_process_that_did_not_fail(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING, encoding="utf-8")
    words = [*LAUNCHER, "--standalone", "--nproc_per_node", "2", str(tmp_path / "failing.py")]
    process = start([sys.executable, *words, str(tmp_path / "run"), "1"], tmp_path, ACCELERATE_USE_CPU="1")
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 1, output
    check_failed(tmp_path / "run", 1, output)


def write_rows(folder: Path, num_rows: int, num_broken: int) -> str:
    """Rows with an image each; of the last ones only the beginning is there."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    rows = []
    for number in range(num_rows):
        file = folder / f"{number}.png"
        noise = np.random.default_rng(number).integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(file)
        if number >= num_rows - num_broken:
            file.write_bytes(file.read_bytes()[:2000])
        talk = [{"from": "human", "value": "<image>\nwho?"}, {"from": "gpt", "value": "the man"}]
        rows.append({"image": file.name, "conversations": talk})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder / "rows.jsonl")


@pytest.mark.parametrize("ending", ["image", "SIGTERM"])
def test_run_with_helpers_saves_and_ends_when_one_of_them_fails(checkpoint: Path, tmp_path: Path, ending: str) -> None:
    rows = write_rows(tmp_path / "rows", 40, 1 if ending == "image" else 0)
    options = {"optimization__num_steps": 500, "saving__every_steps": 0, "num_workers": 2}
    recipe = build_recipe(checkpoint, tmp_path / "run", **options)
    recipe["data"] = {"sources": rows, "verbalizations": "none", "check_images": "path"}
    process = fork_command(recipe)
    if ending == "SIGTERM":
        wait_for(2, tmp_path / "run", process)
        os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    kept = [int(folder.name[5:]) for folder in (tmp_path / "run").glob("checkpoints/step-*")]
    assert "Traceback" not in output and "in DataLoader worker" not in output, output
    if ending == "SIGTERM":
        assert process.returncode == 130 and f"stopped after step {kept[0]}; the same command" in output, output
    else:
        assert process.returncode == 1 and "39.png" in output.split("error: ")[1], output
        assert "step is saved" in output or f"step {kept[0]} of 500 is saved in" in output, output


def test_end_of_a_helper_waits_for_the_next_batch_when_it_comes_amid_a_step() -> None:
    class Numbers(torch.utils.data.Dataset):
        def __getitem__(self, key: int) -> int:
            return key

    batches = load_batches(Numbers(), lambda: iter(range(100)), num_workers=1, num_ranks=1)
    assert next(batches) == 0
    (helper,) = multiprocessing.active_children()
    os.kill(helper.pid, signal.SIGKILL)
    os.waitid(os.P_PID, helper.pid, os.WEXITED | os.WNOWAIT)
    time.sleep(0.1)  # a handler of signals would run, and raise, before this ends
    with pytest.raises(RuntimeError, match="worker"):
        list(batches)
