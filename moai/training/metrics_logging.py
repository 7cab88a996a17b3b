"""Logging of metrics: one JSON line per interval, a live table, trackers."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from verbalizers.core.durable_files import atomic_file, naming_file

from .train_settings import WatchingSettings

__all__ = ["MetricsLogger", "StepNumbers", "read_log", "tables_of"]

#: What every line holds, whatever the task.
_LINE_NUMBERS = ("step", "loss", "learning_rate", "gradient_norm", "tokens_per_s", "samples_per_s", "eta_s")
_LINE_NUMBERS += ("validation_loss",)


@dataclass
class StepNumbers:
    """Sums over the samples of some steps.

    Attributes:
        loss: Summed over targets.
        num_targets: What the loss counts, such as answer tokens.
        num_tokens: Tokens of prompts and answers, image tokens included, padding excluded.
        num_samples: Samples.
        num_steps: Steps.
        counters: The task's own, see :meth:`moai.training.task.Task.step`.
    """

    loss: float = 0.0
    num_targets: float = 0.0
    num_tokens: float = 0.0
    num_samples: float = 0.0
    num_steps: int = 0
    counters: dict[str, torch.Tensor] = field(default_factory=dict)

    def add(self, other: StepNumbers) -> None:
        """Add another's sums to these."""
        for name in _PLAIN_NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.counters = {
            name: self.counters[name] + value if self.counters else value for name, value in other.counters.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-able sums, for the checkpoint."""
        plain = {name: getattr(self, name) for name in _PLAIN_NUMBERS}
        return plain | {name: value.tolist() for name, value in self.counters.items()}

    @classmethod
    def from_dict(cls, sums: Mapping[str, Any]) -> StepNumbers:
        """Sums from a checkpoint.

        Args:
            sums: From :meth:`to_dict`.
        """
        counters = {name: value for name, value in sums.items() if name not in _PLAIN_NUMBERS}
        tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in counters.items()}
        return cls(**{name: sums[name] for name in _PLAIN_NUMBERS if name in sums}, counters=tensors)


_PLAIN_NUMBERS = ("loss", "num_targets", "num_tokens", "num_samples", "num_steps")


class MetricsLogger:
    """Logger of a run's metrics; on the main process only.

    Args:
        settings: How often and where.
        folder: Receives ``log.jsonl``.
        num_steps: Steps of the whole run.
        start: Steps that are done already; later lines of an earlier attempt are dropped.
        window: Sums since the last line, from the checkpoint.
        track: Sends numbers and the step to trackers.
        report: Makes of the task's counters what a line tells, see :meth:`moai.training.task.Task.report`.
    """

    def __init__(
        self,
        settings: WatchingSettings,
        folder: Path,
        num_steps: int,
        start: int = 0,
        window: Mapping[str, Any] | None = None,
        track: Callable[[dict[str, float], int], None] | None = None,
        report: Callable[[Mapping[str, torch.Tensor]], dict[str, Any]] | None = None,
    ) -> None:
        self.settings, self.file, self.num_steps = settings, folder / "log.jsonl", num_steps
        self.window = StepNumbers.from_dict(window or {})
        self.last_loss: float | None = None
        self.track, self.report = track, report or (lambda counters: {})
        self.start, self.began = start, time.monotonic()
        self._since, self._timed = self.began, StepNumbers()  # rates leave out what happened before a resume
        folder.mkdir(parents=True, exist_ok=True)
        lines = [line for line in read_log(self.file) if line["step"] <= start]
        with atomic_file(self.file) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        is_live = sys.stdout.isatty() if settings.is_live is None else settings.is_live
        self._live = Live(console=Console(), auto_refresh=False) if is_live else None

    def __enter__(self) -> MetricsLogger:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def record(
        self,
        step: int,
        numbers: StepNumbers,
        learning_rate: float,
        norm: float,
        validation_loss: float | None = None,
    ) -> None:
        """Record a step's numbers; write, show and send a line where it is time.

        Args:
            step: Steps done.
            numbers: This step's sums over all ranks.
            learning_rate: Highest rate of the groups.
            norm: Gradient norm before clipping.
            validation_loss: Where it was measured after this step, which then has a line in any case.
        """
        self.window.add(numbers)
        self._timed.add(numbers)
        if step % self.settings.every_steps and step != self.num_steps and validation_loss is None:
            return
        line = self._line(step, learning_rate, norm)
        if validation_loss is not None:
            line["validation_loss"] = validation_loss
        self.last_loss = line["loss"]
        with naming_file(self.file), open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._live is not None:
            self._live.update(self._render(line), refresh=True)
        else:
            print(_one_line(line, self.num_steps), flush=True)
        if self.track is not None:
            self.track(_flatten(line), step)
        self.window, self._timed, self._since = StepNumbers(), StepNumbers(), time.monotonic()

    def _line(self, step: int, learning_rate: float, norm: float) -> dict[str, Any]:
        seconds = max(time.monotonic() - self._since, 1e-9)
        done = max(step - self.start, 1)
        return {
            "step": step,
            "loss": self.window.loss / max(self.window.num_targets, 1.0),
            "learning_rate": learning_rate,
            "gradient_norm": norm,
            "tokens_per_s": self._timed.num_tokens / seconds,
            "samples_per_s": self._timed.num_samples / seconds,
            "eta_s": (time.monotonic() - self.began) / done * (self.num_steps - step),
            **self.report(self.window.counters),
        }

    def _render(self, line: Mapping[str, Any]) -> Group:
        numbers = Table(title=f"step {line['step']:,} of {self.num_steps:,}")
        values = {
            "loss": f"{line['loss']:.4f}",
            "lr": f"{line['learning_rate']:.2e}",
            "gradient norm": f"{line['gradient_norm']:.3f}",
            "tokens/s": f"{line['tokens_per_s']:,.0f}",
            "samples/s": f"{line['samples_per_s']:,.2f}",
            "ETA": _duration(line["eta_s"]),
        }
        if "validation_loss" in line:
            values["validation loss"] = f"{line['validation_loss']:.4f}"
        values |= {name: f"{value:.4f}" for name, value in _task_numbers(line).items()}
        for name in values:
            numbers.add_column(name, justify="right")
        numbers.add_row(*values.values())
        tables = []
        for name, rows in tables_of(line).items():
            columns = list(dict.fromkeys(column for row in rows.values() for column in row))
            table = Table(title=name)
            for column in ("", *columns):
                table.add_column(column, justify="right" if column else "left")
            for row, values in rows.items():
                cells = [f"{values[column]:.3f}" if column in values else "" for column in columns]
                table.add_row(row, *cells)
            tables.append(table)
        return Group(numbers, *tables)


def tables_of(line: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """The task's tables in a line: values by column and row, such as a share by expert and stream."""
    tables = {}
    for name, rows in line.items():
        if isinstance(rows, Mapping) and all(isinstance(row, Mapping) for row in rows.values()):
            tables[name] = {
                row: {column: value for column, value in values.items() if isinstance(value, float)}
                for row, values in rows.items()
            }
    return tables


def _task_numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The task's own numbers in a line."""
    return {name: value for name, value in line.items() if name not in _LINE_NUMBERS and isinstance(value, float)}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _one_line(line: Mapping[str, Any], num_steps: int) -> str:
    tables = "".join(
        f" {name} "
        + "; ".join(f"{row} " + " ".join(f"{k} {v:.2f}" for k, v in values.items()) for row, values in rows.items())
        for name, rows in tables_of(line).items()
        if rows
    )
    told = "".join(f" {name} {value:.3f}" for name, value in _task_numbers(line).items())
    measured = f" validation {line['validation_loss']:.4f}" if "validation_loss" in line else ""
    return (
        f"step {line['step']}/{num_steps} loss {line['loss']:.4f}{measured} lr {line['learning_rate']:.2e} "
        f"norm {line['gradient_norm']:.3f} {line['tokens_per_s']:.0f} tokens/s {line['samples_per_s']:.2f} samples/s "
        f"ETA {_duration(line['eta_s'])}" + told + tables
    )


def _flatten(line: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers only, nested names joined by slashes, as trackers want them."""
    flat: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            flat[f"{prefix}{name}"] = value
    return flat


def read_log(file: Path) -> list[dict[str, Any]]:
    """Lines of a ``log.jsonl``; one that a kill cut short ends the list.

    Args:
        file: The file; an absent one has no lines.
    """
    lines: list[dict[str, Any]] = []
    if not file.is_file():
        return lines
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
