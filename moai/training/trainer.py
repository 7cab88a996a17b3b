"""The trainer: the steps of a run of a task, from its last checkpoint to its end; and training on answers on it.

Built on accelerate (https://huggingface.co/docs/accelerate) and a loop of its own: batches and random numbers are
functions of seed and step, which is what makes a resumed run equal to an unbroken one, bit by bit on CPUs.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor

from .attention_kernels import short_rows_plainly
from .checkpoints import (
    CheckpointError,
    collect_state,
    find_newest_checkpoint,
    read_checkpoint,
    restore_extra_state,
    restore_state,
    running_statistics,
    whole_tensor,
    write_checkpoint,
)
from .metrics_logging import MetricsLogger, StepNumbers
from .model_building import BuiltModel, build_model, check_result, find_task, hash_start, prepare_start
from .optimizers import build_optimizers, learning_rate_factor
from .processes import (
    InterruptHandler,
    hold_output,
    ignore_helpers,
    raising_together,
    seed_generators,
    start_accelerator,
)
from .result_writing import gather_result, write_result
from .run_identity import check_same_run, flatten_settings
from .start import write_command
from .task import Batch, Task
from .tasks import find_runner
from .train_settings import RunSettings, TrainSettings, load_settings
from .trained_parts import PartCount, count_parts, print_parts
from .validation import Validator
from .weight_mean import WeightMean
from .zero_sharding import collect_zero_state, configure_engine, is_zero, restore_zero_state

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Trainer", "TrainingResult", "finish_run", "learning_rate_factor", "run_training"]


@dataclass(frozen=True)
class TrainingResult:
    """What :func:`run_training` returns.

    Attributes:
        folder: The result: an adapter or a whole model; None where the run was stopped before its end.
        output_folder: Folder of the run: ``final``, ``checkpoints``, ``log.jsonl``, plots.
        num_steps: Optimizer steps done.
        is_finished: Whether all steps are done.
        loss: Mean loss per answer token over the last line of the log; None where nothing was logged.
        parts: What was trained.
    """

    folder: Path | None
    output_folder: Path
    num_steps: int
    is_finished: bool
    loss: float | None
    parts: list[PartCount]


def run_training(
    source: str | Path | Mapping[str, Any] | TrainSettings,
    overrides: Sequence[str] = (),
    *,
    dataset: Any = None,
    collator: Callable[[list[Any]], Mapping[str, torch.Tensor]] | None = None,
) -> TrainingResult:
    """Train one stage, or resume it from its last checkpoint.

    Args:
        source: A recipe: YAML file, mapping or settings; its ``task`` names another kind of training.
        overrides: ``key=value`` words laid over it.
        dataset: Instead of ``settings.data``: a map-style dataset with ``lengths``, or a function of the processor
            that builds one. Its ``identity()``, JSON-able values, tells whether it is the same when a run goes on;
            without one each sample is made once more for that.
        collator: What makes a batch of its samples; default: the model's :class:`moai.data.collator.SampleCollator`.

    Returns:
        Where the result lies and how far the run came.

    Raises:
        ValueError: The recipe, the data, the model or a checkpoint is not as expected, or another process trains in
            the folder; the message says what to do.
        ImportError: A package is missing; the message holds the line that installs it.
    """
    if (run := find_runner(source, overrides)) is not None:
        return run(source, overrides)
    settings = load_settings(source, overrides)
    if dataset is None:
        from moai.data.training_data import DataSettings

        for fields in filter(None, (settings.data, settings.validation)):
            DataSettings.from_dict(fields)  # wrong ones are told before anything is loaded or made
    accelerator = start_accelerator(settings)
    with hold_output(settings.output_folder, accelerator):
        is_new = not any(settings.output_folder.glob("checkpoints/step-*"))
        if accelerator.is_main_process and is_new:
            write_command(settings.output_folder, source, overrides)
        return _train(settings, accelerator, dataset, collator)


def _train(
    settings: TrainSettings,
    accelerator: Accelerator,
    dataset: Any,
    collator: Callable[[list[Any]], Mapping[str, torch.Tensor]] | None,
) -> TrainingResult:
    with raising_together(accelerator, ValueError, ImportError, OSError):  # and none goes on before the start is there
        if accelerator.is_main_process:
            check_result(settings.output_folder)
            prepare_start(settings)
    built, task_class = build_model(settings, accelerator.device), find_task(settings)
    model, processor = built.model, built.processor
    task_class.freeze(model, settings)
    parts = count_parts(model, task_class.parts_of(model))
    check_rates(settings, parts)
    reader = task_class.collator_class(processor, is_sharing=settings.optimization.samples_per_image > 1)
    options, output = {"collator": reader, "max_positions": task_class.max_positions(model)}, settings.output_folder
    if accelerator.is_main_process:
        print_parts(parts)
    if dataset is None:
        dataset = _build_dataset(settings.data, built, accelerator, output / "bad_rows.jsonl", **options)
    elif callable(dataset) and not hasattr(dataset, "__getitem__"):
        dataset = dataset(processor)
    validation = None
    if settings.validation:
        file = output / "bad_rows_validation.jsonl"
        validation = _build_dataset(settings.validation, built, accelerator, file, "validation: ", **options)
    start = hash_start(built) if accelerator.is_main_process else {}
    task = task_class(settings, model, dataset, collator or getattr(dataset, "collator", reader), validation, start)
    trainer = Trainer(settings, task, task.num_steps, accelerator)

    def write(state: dict[str, torch.Tensor]) -> None:
        write_result(built, state, settings, getattr(dataset, "verbalizer_settings", None))

    return finish_run(trainer, parts, lambda: gather_result(model), write)


def finish_run(
    trainer: Trainer,
    parts: list[PartCount],
    gather: Callable[[], dict[str, torch.Tensor]],
    write: Callable[[dict[str, torch.Tensor]], None],
) -> TrainingResult:
    """Run the remaining steps, and write the result where they are done.

    Args:
        trainer: Of the run.
        parts: What is trained.
        gather: Gathers the result's tensors; all ranks call it.
        write: Writes them to ``final``; one rank calls it.
    """
    settings, output = trainer.settings, trainer.settings.output_folder
    done, loss = trainer.run()
    if done < trainer.num_steps:
        return TrainingResult(None, output, done, False, loss, parts)
    state = gather()
    if trainer.accelerator.is_main_process:
        write(state)
        if settings.watching.has_plots:
            from .plotting import draw_plots

            draw_plots(output)
    trainer.accelerator.wait_for_everyone()
    return TrainingResult(output / "final", output, done, True, loss, parts)


def _build_dataset(
    fields: Mapping[str, Any],
    built: BuiltModel,
    accelerator: Accelerator,
    report_file: Path,
    label: str = "",
    **options: Any,
) -> Any:
    from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
    from moai.data.training_data import DataSettings, build_training_dataset

    verbalizers = VerbalizerSettings.load_pretrained(built.start)
    file = report_file if accelerator.is_main_process else None
    dataset = build_training_dataset(
        DataSettings.from_dict(fields), verbalizer_settings=verbalizers, report_file=file, **options
    )
    if accelerator.is_main_process:
        print(label + dataset.report.summary(), flush=True)
    return dataset


def check_rates(settings: TrainSettings, parts: Sequence[PartCount]) -> None:
    """Check that rates of parts are rates of parts of this model.

    Raises:
        ValueError: Some are not.
    """
    known = [row.part for row in parts]
    if unknown := sorted(set(settings.optimization.learning_rates) - set(known)):
        raise ValueError(f"`optimization.learning_rates` may name {', '.join(known)}, got {unknown}.")


class Trainer:
    """The steps of a run on one process of it.

    Args:
        settings: How to optimise, what to save and to show, and where.
        task: What is trained, on what; frozen parameters have no gradient.
        num_steps: Optimizer steps of the whole run.
        accelerator: From :func:`.processes.start_accelerator`.

    Raises:
        ValueError: The settings do not fit the processes.
    """

    def __init__(self, settings: RunSettings, task: Task, num_steps: int, accelerator: Accelerator) -> None:
        chosen = settings.optimization
        self.settings, self.task, self.num_steps, self.accelerator = settings, task, num_steps, accelerator
        self.checkpoints = settings.output_folder / "checkpoints"
        self.done = self.saved = 0
        self._is_updating = False
        self._statistics: list[tuple[torch.Tensor, torch.Tensor]] = []  # as they were before the present step
        self._unlogged: StepNumbers | None = None
        num_micro_batches, num_ranks = chosen.batch_size // chosen.micro_batch_size, accelerator.num_processes
        if num_micro_batches % num_ranks:
            raise ValueError(
                f"expected `optimization.batch_size` to be a multiple of micro_batch_size x processes, got "
                f"{chosen.batch_size}, {chosen.micro_batch_size} and {num_ranks} processes."
            )
        self.num_own = num_micro_batches // num_ranks
        if is_zero(accelerator) and chosen.optimizer != "adamw":
            raise ValueError("DeepSpeed takes one optimizer. Set `optimization.optimizer: adamw`.")
        if is_zero(accelerator) and chosen.averaged_share:
            raise ValueError("DeepSpeed shards weights that are to be averaged. Use DDP or FSDP (configs/accelerate).")
        if is_zero(accelerator) and task.extra_state():
            raise ValueError(
                f"expected a task without a state beside its model where DeepSpeed shards it, got {type(task).__name__}"
                " with one. Use DDP or FSDP (configs/accelerate)."
            )
        if is_zero(accelerator):
            configure_engine(accelerator, chosen, self.num_own)
        task.set_training_mode()
        # Before weights are spread over ranks. The main process compares and saves for all.
        self._state: dict[str, Any] = {}
        if accelerator.is_main_process:
            self._state = json.loads(json.dumps({"settings": settings.to_dict(), **task.identity()}))
            unknown = task.fixed_settings - flatten_settings(self._state["settings"]).keys()
            assert not unknown, unknown
        optimizers = build_optimizers(task.model, chosen, task.part_of, task.decays)
        self.wrapped, *self.optimizers = accelerator.prepare(task, *optimizers)
        self.mean = WeightMean(task.model, num_steps, chosen.averaged_share)
        self.validator = Validator(accelerator, task, self.wrapped) if task.num_validation_batches else None

    def run(self) -> tuple[int, float | None]:
        """Run the remaining steps; after the last of them the model holds the mean of weights where one is asked for.

        Returns:
            How many are done, fewer than all after Ctrl-C or SIGTERM; and the last logged loss, on the main process.

        Raises:
            ValueError: A loss is not finite, a step has no targets, a checkpoint does not fit or cannot be written, or
                another process trains in the folder.
            Exception: Whatever the task raises. What is done is saved before, as far as it is whole on the main
                process, and a line on standard error says how far that is.
        """
        with hold_output(self.settings.output_folder, self.accelerator):
            return self._run()

    def _run(self) -> tuple[int, float | None]:
        start, window = self._resume()
        logger = self._start_logger(start, window)
        accelerator = self.accelerator
        batches = self.task.batches(start, self.num_steps, accelerator.process_index, accelerator.num_processes)
        self.done = self.saved = start
        with InterruptHandler() as interrupts:
            try:
                with logger if logger is not None else contextlib.nullcontext():
                    self._run_steps(batches, logger, interrupts)
            except BaseException as error:
                with ignore_helpers():
                    self._save_after(error, logger)
                # SIGTERM to a whole group ends helpers too, and with them the step that had begun.
                is_stopped = interrupts.is_interrupted and isinstance(error, RuntimeError | OSError | EOFError)
                if not (is_stopped and self.done == self.saved):
                    raise
        done = self.done
        assert self.saved == done
        if done == self.num_steps:
            self.mean.put()
        for tracker in accelerator.trackers:
            tracker.finish()
        return done, logger.last_loss if logger is not None else None

    def _run_steps(self, batches: Iterator[Batch], logger: MetricsLogger | None, interrupts: InterruptHandler) -> None:
        every = self.settings.saving.every_steps
        for step in range(self.done, self.num_steps):
            numbers, rate, norm, is_stopping = self._step(step, batches, interrupts)
            self.done = done = step + 1
            self._unlogged = numbers
            measured = self._validate(done)
            self._unlogged = None
            if logger is not None:
                logger.record(done, numbers, rate, norm, measured)
            if is_stopping or done == self.num_steps or (every and done % every == 0):
                self._save(done, logger)
            if is_stopping:
                break

    def _save_after(self, error: BaseException, logger: MetricsLogger | None) -> None:
        """Save the steps before an error, where the main process has them whole; tell how far they go."""
        if logger is None:
            return
        problem = ""
        if self.done > self.saved and not isinstance(error, CheckpointError):
            try:
                self._check_whole()
                for buffer, value in self._statistics:
                    buffer.copy_(value)
                if self._unlogged is not None:
                    logger.window.add(self._unlogged)
                extra = {name: whole_tensor(value) for name, value in self._extra_state().items()}
                self._write(self.done, logger, *collect_state(self.task.model, self.optimizers), extra)
                self.saved = self.done
            except Exception as other:  # noqa: BLE001 - the first error is to be shown, whatever this one is
                problem = f"steps {self.saved + 1} to {self.done} are lost: {other}. "
        told = "no step is saved; the same command begins anew."
        if self.saved:
            saved = f"step {self.saved} of {self.num_steps} is saved in {self.checkpoints}"
            told = f"{saved}; the same command goes on from there."
        told = f"stopped by {type(error).__name__} after step {self.done}: {problem}{told}"
        print(told, file=sys.stderr, flush=True)

    def _check_whole(self) -> None:
        """Check that this process can save alone, and that no optimizer step is half done.

        Raises:
            ValueError: It cannot.
        """
        if self._is_updating:
            raise ValueError("the error came while weights were changed")
        if is_zero(self.accelerator) or any(isinstance(value, DTensor) for value in self.task.model.parameters()):
            raise ValueError("weights lie in pieces on all processes, which do not answer any more")

    def _validate(self, done: int) -> float | None:
        """Validation loss where it is time to measure it; at the end that of the result."""
        every = self.settings.watching.validate_every_steps
        if self.validator is None or not (done == self.num_steps or (every and done % every == 0)):
            return None
        with self.mean.in_place() if done == self.num_steps else contextlib.nullcontext():
            return self.validator.measure()

    def _start_logger(self, start: int, window: Mapping[str, Any] | None) -> MetricsLogger | None:
        settings, accelerator = self.settings, self.accelerator
        if settings.watching.report_to:
            named, folder = {"name": settings.output_folder.name}, settings.output_folder / "trackers"
            folder.mkdir(parents=True, exist_ok=True)
            accelerator.init_trackers(
                settings.watching.project,
                config=flatten_settings(settings.to_dict()),
                init_kwargs={"trackio": named, "wandb": {**named, "dir": str(folder)}},
            )
        if not accelerator.is_main_process:
            return None
        track = accelerator.log if settings.watching.report_to else None
        report = self.task.report
        return MetricsLogger(settings.watching, settings.output_folder, self.num_steps, start, window, track, report)

    def _step(
        self, step: int, batches: Iterator[Batch], interrupts: InterruptHandler
    ) -> tuple[StepNumbers, float, float, bool]:
        """One optimizer step: the loss is the mean over the targets of the whole batch, all ranks together."""
        settings, accelerator = self.settings, self.accelerator
        self._statistics = [(value, value.clone()) for value in running_statistics(self.task.model).values()]
        seed_generators(settings.seed, step)
        own = [next(batches) for _ in range(self.num_own)]
        sums = [sum(batch.num_targets for batch in own), sum(batch.num_tokens for batch in own)]
        num_targets, num_tokens = self._sum(torch.tensor(sums, dtype=torch.float64)).tolist()
        if num_targets == 0:
            raise ValueError(f"expected answer tokens in the batch of step {step + 1}, got none. Check its labels.")
        factor = learning_rate_factor(step, self.num_steps, settings.optimization)
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group in groups:
            group["lr"] = group["peak"] * factor
        loss, counters = self._backward(step, own, num_targets)
        norm = accelerator.clip_grad_norm_(self.wrapped.parameters(), settings.optimization.clip_norm or math.inf)
        values = [loss, float(interrupts.is_interrupted)]
        flat = [value.double().flatten().cpu() for value in counters.values()]
        total, wishes, *counted = self._sum(torch.cat([torch.tensor(values, dtype=torch.float64), *flat])).split(
            [1, 1, *(value.numel() for value in flat)]
        )
        norm = float(whole_tensor(torch.as_tensor(0.0 if norm is None else norm)))
        for name, value in (("loss", total.item()), ("gradient norm", norm)):
            if not math.isfinite(value):
                raise ValueError(
                    f"expected a finite {name}, got {value} at step {step + 1}. Look at the data of that step, or "
                    "lower `optimization.learning_rate` in another `output_folder`."
                )
        self._is_updating = True
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.task.after_step(step + 1)
        self.mean.after_step(step + 1)
        self._is_updating, self._statistics = False, []
        named = zip(counters.items(), counted, strict=True)
        counters = {name: summed.view(value.shape) for (name, value), summed in named}
        num_samples = float(settings.optimization.batch_size)
        numbers = StepNumbers(total.item(), num_targets, num_tokens, num_samples, 1, counters)
        return numbers, max(group["lr"] for group in groups), norm, wishes.item() > 0

    def _backward(self, step: int, own: Sequence[Batch], num_targets: float) -> tuple[float, dict[str, torch.Tensor]]:
        """Add up the gradients of this rank's micro-batches; their summed loss and counters."""
        from accelerate.utils import send_to_device

        settings, accelerator = self.settings, self.accelerator
        rank, num_ranks = accelerator.process_index, accelerator.num_processes
        attention_kernels = short_rows_plainly if accelerator.device.type == "cpu" else contextlib.nullcontext
        total, sums = 0.0, {}
        for place, batch in enumerate(own):
            seed_generators(settings.seed, step, place * num_ranks + rank)  # the same numbers on any number of ranks
            is_last = place == len(own) - 1
            sharing = contextlib.nullcontext() if is_last else accelerator.no_sync(self.wrapped)
            with sharing, attention_kernels():
                loss, counters = self.wrapped(send_to_device(batch.inputs, accelerator.device, non_blocking=True))
                scale = num_ranks / num_targets  # ranks' gradients are averaged
                if is_zero(accelerator):  # whose engine divides by the micro-batches, and steps after the last
                    scale *= len(own)
                    accelerator.gradient_state._set_sync_gradients(is_last)
                accelerator.backward(loss * scale)
            total += loss.item()
            sums = {name: value + sums[name] if sums else value for name, value in counters.items()}
        return total, sums

    def _extra_state(self) -> dict[str, torch.Tensor]:
        """What training changes beside the model: the task's, and the mean of weights."""
        return self.task.extra_state() | self.mean.state()

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        """Add numbers up over ranks; float64 on the CPU."""
        return self.accelerator.reduce(values.to(self.accelerator.device), reduction="sum").cpu()

    def _save(self, done: int, logger: MetricsLogger | None) -> None:
        if is_zero(self.accelerator):
            weights, moments = collect_zero_state(self.task.model, *self.optimizers)
        else:
            weights, moments = collect_state(self.task.model, self.optimizers)
        extra = {name: whole_tensor(value) for name, value in self._extra_state().items()}
        with raising_together(self.accelerator, CheckpointError):
            if logger is not None:
                self._write(done, logger, weights, moments, extra)
        self.saved = done

    def _write(self, done: int, logger: MetricsLogger, *tensors: dict[str, torch.Tensor]) -> None:
        """Write weights, moments and what the task keeps beside them."""
        broken = [name for group in tensors for name, value in group.items() if not value.isfinite().all()]
        if broken:
            raise CheckpointError(
                f"expected finite weights after step {done}, got others in {broken[0]!r}: they are not saved. Lower "
                "`optimization.learning_rate` in another `output_folder`."
            )
        state = {**self._state, "window": logger.window.to_dict()}
        weights, moments, extra = tensors
        write_checkpoint(self.checkpoints, done, weights, moments, state, self.settings.saving.keep, extra)

    def _resume(self) -> tuple[int, Mapping[str, Any] | None]:
        """Steps done, and the sums since the last line of the log."""
        found, broken = find_newest_checkpoint(self.checkpoints)
        is_main = self.accelerator.is_main_process
        for name, problem in broken.items() if is_main else ():
            print(f"checkpoint {name} is not whole and is skipped: {problem}", flush=True)
        if found is None:
            return 0, None
        weights, moments, state = read_checkpoint(found)
        with raising_together(self.accelerator, CheckpointError):
            if is_main and (told := check_same_run(state, self._state, found, self.task.fixed_settings)):
                print(told, flush=True)
        if is_zero(self.accelerator):
            restore_zero_state(self.task.model, *self.optimizers, weights, moments)
        else:
            restore_state(self.task.model, self.optimizers, weights, moments)
        restore_extra_state(self._extra_state(), found)
        if is_main:
            print(f"going on after step {state['step']} of {self.num_steps} ({found})", flush=True)
        return int(state["step"]), state.get("window")
