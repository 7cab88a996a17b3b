"""Stages of recipes: settings, tasks with counters, runs of the trainer."""

from __future__ import annotations

import dataclasses
import json
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from moai.settings import settings, to_plain
from moai.training.checkpoints import find_newest_checkpoint, read_checkpoint
from moai.training.processes import start_accelerator
from moai.training.run_identity import find_change
from moai.training.task import Batch, Task
from moai.training.train_settings import OptimizationSettings, RunSettings, SavingSettings, WatchingSettings
from moai.training.trainer import Trainer
from verbalizers.core.durable_files import write_json

__all__ = [
    "CountingTask",
    "StageSettings",
    "has_checkpoint",
    "is_made",
    "load_finished",
    "load_trained",
    "note_made",
    "run_stage",
]

EXIT_INTERRUPTED = 130
_ORIGIN_FILE = "made_from.json"


@settings(kw_only=True)
class StageSettings:
    """How one stage of a recipe is trained.

    Attributes:
        optimization: How; `batch_size` counts scenes.
        saving: What is kept.
        watching: What is shown.
    """

    optimization: OptimizationSettings
    saving: SavingSettings = field(default_factory=SavingSettings)
    watching: WatchingSettings = field(default_factory=WatchingSettings)


class CountingTask(Task):
    """A task whose counters are `asked_x` and `right_x`; the log tells their quotients `x`.

    Args:
        model: The trained model.
        optimization: Into how many micro-batches a step is cut, and whose names have learning rates of their own.
        data: Settings of the data, or JSON-able values that tell it: a resumed run must share them.

    Attributes:
        bound: The stage's own settings, which it must share too; :func:`run_stage` fills them in.
    """

    #: Names of all counters.
    count_names: Sequence[str] = ()

    def __init__(self, model: nn.Module, optimization: OptimizationSettings, data: Any = None) -> None:
        super().__init__()
        self.model, self.optimization, self.data = model, optimization, data
        self.bound: dict[str, Any] = {}
        self.num_micro_batches = optimization.batch_size // optimization.micro_batch_size

    @abstractmethod
    def batch(self, step: int, place: int) -> Batch:
        """A step's micro-batch: every ``num_micro_batches``-th scene from the ``place``-th on."""

    def batches(self, first_step: int, last_step: int, rank: int, num_ranks: int) -> Iterator[Batch]:
        """See :meth:`moai.training.task.Task.batches`."""
        for step in range(first_step, last_step):
            for place in range(rank, self.num_micro_batches, num_ranks):
                yield self.batch(step, place)

    def counters(self, counts: Mapping[str, float]) -> dict[str, torch.Tensor]:
        """What `forward` returns of its counts; those that are not named are 0."""
        return {"counts": torch.tensor([counts.get(name, 0.0) for name in self.count_names], dtype=torch.float64)}

    def report(self, counters: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Quotients of the counters, where something was asked."""
        counts = dict(zip(self.count_names, counters["counts"].tolist(), strict=True))
        asked = {name.removeprefix("asked_"): count for name, count in counts.items() if name.startswith("asked_")}
        return {name: counts[f"right_{name}"] / count for name, count in asked.items() if count}

    def part_of(self, name: str) -> str:
        """The first key of `learning_rates` that stands in the name."""
        return next((piece for piece in self.optimization.learning_rates if piece in name), "")

    def identity(self) -> dict[str, Any]:
        """Frozen weights, the stage's settings and those of the data."""
        data = to_plain(self.data) if dataclasses.is_dataclass(self.data) else self.data
        return super().identity() | {"stage": self.bound} | ({} if data is None else {"data": data})


def run_stage(task: CountingTask, settings: StageSettings, folder: Path, seed: int = 0) -> None:
    """Train on the CPU, or go on training.

    Processes of one thread each that meet once per step are several times faster on few, busy cores than one process
    whose threads meet in every matrix product: a process has `OMP_NUM_THREADS` threads, or one.

    Args:
        task: What is trained.
        settings: How.
        folder: Receives ``checkpoints/`` and ``log.jsonl``.
        seed: Of what is drawn while training.

    Raises:
        SystemExit: Ctrl-C or SIGTERM came; a checkpoint is written.
    """
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    fields = {item.name: getattr(settings, item.name) for item in dataclasses.fields(StageSettings)}
    task.bound = {name: value for name, value in to_plain(settings).items() if name not in fields}
    run = RunSettings(output_folder=folder, seed=seed, **fields)
    accelerator = start_accelerator(run)
    done, _ = Trainer(run, task, settings.optimization.num_steps, accelerator).run()
    accelerator.wait_for_everyone()
    if done < settings.optimization.num_steps:
        print(f"stopped after step {done}; the same command goes on from there.", flush=True)
        raise SystemExit(EXIT_INTERRUPTED)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def is_made(folder: Path, origin: Any) -> bool:
    """Whether a folder was made before, of the same; :func:`note_made` says so.

    Args:
        folder: What a recipe makes once.
        origin: JSON-able: what decides it.

    Raises:
        ValueError: It was made of something else.
    """
    file = folder / _ORIGIN_FILE
    if not file.is_file():
        return False
    change = find_change(json.loads(file.read_text(encoding="utf-8")), json.loads(json.dumps(origin)))
    if change is not None:
        raise ValueError(
            f"expected {folder} as it was made, but `{change[0]}` {change[1]}. Set it back, or choose another --out."
        )
    return True


def note_made(folder: Path, origin: Any) -> None:
    """Note what a folder is made of, see :func:`is_made`."""
    write_json(folder / _ORIGIN_FILE, origin)


def has_checkpoint(folder: Path) -> bool:
    """Whether a stage has left a checkpoint in its folder, finished or not."""
    return find_newest_checkpoint(folder / "checkpoints")[0] is not None


def load_trained(model: nn.Module, folder: Path) -> None:
    """Put what a stage has trained so far into a model that was built as for that stage.

    Args:
        model: Its frozen parameters stay as they are.
        folder: The stage's.

    Raises:
        ValueError: There is no checkpoint, or it is of another model.
    """
    found, _ = find_newest_checkpoint(folder / "checkpoints")
    if found is None:
        raise ValueError(f"expected a trained model in {folder}, got none. Run the stage before this one first.")
    weights, _, _ = read_checkpoint(found)
    own = model.state_dict()
    strangers = sorted(name for name, value in weights.items() if name not in own or own[name].shape != value.shape)
    if strangers:
        raise ValueError(
            f"expected the weights of this model in {found}, got others (first difference: {strangers[0]!r}). Choose "
            "another output folder, or the configuration the run was started with."
        )
    model.load_state_dict(weights, strict=False)


def load_finished(
    model: nn.Module, folder: Path, fit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None = None
) -> None:
    """Put the weights of a folder for ``from_pretrained`` into a model that was built like it; its dtypes stay.

    Args:
        model: Changed in place.
        folder: Holds ``model.safetensors``.
        fit: Makes of the folder's weights those that the model wants, where it is built a little otherwise.

    Raises:
        ValueError: There is none that can be read, or it is of another model.
    """
    file, own = folder / "model.safetensors", model.state_dict()
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"expected a finished model to start from in {folder}, got none that can be read ({error}). Correct "
            "`start`."
        ) from error
    if fit is not None:
        weights = fit(weights)
    differing = sorted(name for name in own.keys() | weights.keys() if not _alike(own.get(name), weights.get(name)))
    if differing:
        raise ValueError(
            f"expected the weights of this model in {file}, got others (first difference: {differing[0]!r}). Set the "
            "fields of `model` to those of its config.json, or start from another folder."
        )
    model.load_state_dict(weights)


def _alike(own: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return own is not None and other is not None and own.shape == other.shape
