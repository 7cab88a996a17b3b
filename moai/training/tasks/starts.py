"""Runs of tasks on images: a model that training starts from, the steps, and the result."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from moai.checkpoints.io.contents import hash_checkpoint
from verbalizers.core.durable_files import atomic_folder

from ..checkpoints import whole_tensor
from ..model_building import ORIGIN_FILE, check_result, show_weights
from ..processes import hold_output, raising_together, start_accelerator
from ..start import write_command
from ..trained_parts import PartCount, print_parts
from ..trainer import Trainer, TrainingResult, finish_run
from .image_run import ImageRunSettings
from .image_task import ImageTask

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["run_image_task"]


def run_image_task(
    settings: ImageRunSettings,
    source: Any,
    overrides: Sequence[str],
    origin: Mapping[str, Any],
    write_start: Callable[[Path], None],
    build: Callable[[Path, Mapping[str, str]], ImageTask],
    write: Callable[[Path, Path, dict[str, torch.Tensor]], None],
) -> TrainingResult:
    """Train, or go on from the last checkpoint.

    ``<output_folder>/base`` is the model before the first step, written once: so nothing that was drawn or fetched for
    it can be otherwise when the run goes on.

    Args:
        settings: The recipe.
        source: Where it comes from.
        overrides: ``key=value`` words laid over it.
        origin: JSON-able values that decide the model before the first step.
        write_start: Writes that model to a folder.
        build: Builds the task from that folder and the hashes of its files.
        write: Writes the result: that folder, the result's folder, and trained tensors by their names in the task's
            model.

    Raises:
        ValueError: The recipe, the data, the model or a checkpoint is not as expected.
    """
    accelerator = start_accelerator(settings)
    output, base = settings.output_folder, settings.output_folder / "base"
    with hold_output(output, accelerator):
        # None goes on before the start is there.
        with raising_together(accelerator, ValueError, ImportError, OSError):
            if accelerator.is_main_process:
                check_result(output)
                is_new = not any(output.glob("checkpoints/step-*"))
                if is_new:
                    write_command(output, source, overrides)
                _prepare_start(base, json.loads(json.dumps(origin)), write_start, settings.seed, is_new)
        return _train(settings, accelerator, base, build, write)


def _prepare_start(
    base: Path, origin: Mapping[str, Any], write_start: Callable[[Path], None], seed: int, is_new: bool
) -> None:
    """Write the start where it is not there, or was made otherwise and nothing was trained from it yet.

    A run that goes on finds changed settings by its checkpoint.
    """
    file = base / ORIGIN_FILE
    if file.is_file() and (not is_new or json.loads(file.read_text(encoding="utf-8")) == origin):
        return
    torch.manual_seed(seed)
    with atomic_folder(base, force=True) as folder:
        write_start(folder)
        (folder / ORIGIN_FILE).write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")


def _train(
    settings: ImageRunSettings,
    accelerator: Accelerator,
    base: Path,
    build: Callable[[Path, Mapping[str, str]], ImageTask],
    write: Callable[[Path, Path, dict[str, torch.Tensor]], None],
) -> TrainingResult:
    start = hash_checkpoint(base, show_weights) if accelerator.is_main_process else {}
    task = build(base, {name: digest for name, digest in start.items() if name != ORIGIN_FILE})
    parts = _count_parts(task.model)
    if accelerator.is_main_process:
        print_parts(parts)
        for problem in task.dataset.problems:
            print(f"skipped {problem}", flush=True)
        print(f"{len(task.dataset)} images, {task.num_steps} steps", flush=True)
    trainer = Trainer(settings, task, task.num_steps, accelerator)

    def write_final(state: dict[str, torch.Tensor]) -> None:
        with atomic_folder(settings.output_folder / "final", force=True) as folder:
            write(base, folder, state)

    def gather() -> dict[str, torch.Tensor]:
        return {name: whole_tensor(value) for name, value in task.model.named_parameters()}

    return finish_run(trainer, parts, gather, write_final)


def _count_parts(model: nn.Module) -> list[PartCount]:
    counts = []
    for name, part in model.named_children():
        sizes = [parameter.numel() for parameter in part.parameters()]
        counts.append(PartCount(name, sum(sizes), sum(sizes)))
    return counts
