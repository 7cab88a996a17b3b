"""One stage of training from a recipe to a result; :func:`run_training` is the door.

Built on accelerate (https://huggingface.co/docs/accelerate) and a loop of its own: batches and random numbers are
functions of seed and step, which is what makes a resumed run equal to an unbroken one, bit by bit on CPUs.
"""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from .batch_order import BatchOrder, MicroBatchSampler
from .model_building import BuiltModel, build_model, prepare_start
from .processes import StopWish, ignore_interrupts, seed_generators, start_accelerator
from .result_writing import gather_result, write_result
from .train_checkpoints import (
    CheckpointError,
    collect_state,
    find_newest_checkpoint,
    read_checkpoint,
    restore_state,
    whole_tensor,
    write_checkpoint,
)
from .train_settings import OptimizationSettings, TrainSettings, load_settings
from .train_step import TrainingStep, count_targets, target_window
from .trained_parts import PartCount, build_optimizer, count_parts, freeze_parts, print_parts, set_training_mode
from .validation import Validator
from .watching import StepNumbers, Watcher
from .zero_sharding import collect_zero_state, configure_engine, is_zero, restore_zero_state

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["TrainingResult", "learning_rate_factor", "run_training"]

#: Settings that a resumed run may change: they leave what is learned as it is, up to rounding.
_FREE_SETTINGS = ("output_folder", "saving", "watching", "validation", "num_processes", "num_workers")
_FREE_NESTED = {"model": ("gradient_checkpointing", "attn_implementation"), "optimization": ("micro_batch_size",)}


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


def learning_rate_factor(step: int, num_steps: int, settings: OptimizationSettings) -> float:
    """Factor on the peak rate at a zero-based step: linear rise, then a cosine down to ``final_share``.

    Args:
        step: Steps done before this one.
        num_steps: Of the whole run.
        settings: ``warmup_share`` and ``final_share``.
    """
    warmup = math.ceil(settings.warmup_share * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, num_steps - warmup)
    return settings.final_share + (1 - settings.final_share) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def run_training(
    source: str | Path | Mapping[str, Any] | TrainSettings,
    overrides: Sequence[str] = (),
    *,
    dataset: Any = None,
    collator: Callable[[list[Any]], Mapping[str, torch.Tensor]] | None = None,
) -> TrainingResult:
    """Train one stage, or go on with it where a checkpoint lies.

    Args:
        source: A recipe: YAML file, mapping or settings.
        overrides: ``key=value`` words laid over it.
        dataset: Instead of ``settings.data``: a map-style dataset with ``lengths``, or a function of the processor
            that builds one.
        collator: What makes a batch of its samples; default :class:`moai.data.collator.TrainingCollator`.

    Returns:
        Where the result lies and how far the run came.

    Raises:
        ValueError: The recipe, the data, the model or a checkpoint is not as expected; the message says what to do.
        ImportError: A package is missing; the message holds the line that installs it.
    """
    settings = load_settings(source, overrides)
    accelerator = start_accelerator(settings)
    with accelerator.main_process_first():
        prepare_start(settings)
    built = build_model(settings, accelerator.device)
    model, processor = built.model, built.processor
    freeze_parts(model, settings)
    parts = count_parts(model)
    if accelerator.is_main_process:
        print_parts(parts)
    if dataset is None:
        dataset = _build_dataset(settings.data, built, accelerator)
    elif callable(dataset) and not hasattr(dataset, "__getitem__"):
        dataset = dataset(processor)
    loop = _Loop(settings, accelerator, model, dataset, collator or _build_collator(processor, settings))
    if settings.validation:
        loop.validate_on(_build_dataset(settings.validation, built, accelerator, "validation: "))
    done, loss = loop.run()
    for tracker in accelerator.trackers:
        tracker.finish()
    if done < loop.num_steps:
        return TrainingResult(None, settings.output_folder, done, False, loss, parts)
    state = gather_result(model, settings)
    if accelerator.is_main_process:
        write_result(built, state, settings, getattr(dataset, "verbalizer_settings", None))
        if settings.watching.has_plots:
            from .plotting import draw_plots

            draw_plots(settings.output_folder)
    accelerator.wait_for_everyone()
    return TrainingResult(settings.output_folder / "final", settings.output_folder, done, True, loss, parts)


def _build_dataset(fields: Mapping[str, Any], built: BuiltModel, accelerator: Accelerator, label: str = "") -> Any:
    from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
    from moai.data.training_data import DataSettings, build_training_dataset

    verbalizers = VerbalizerSettings.load_pretrained(built.start)
    dataset = build_training_dataset(DataSettings.from_dict(fields), built.processor, verbalizers)
    if accelerator.is_main_process:
        print(label + dataset.report.summary(), flush=True)
    return dataset


def _build_collator(processor: Any, settings: TrainSettings) -> Callable[[list[Any]], Mapping[str, torch.Tensor]]:
    from moai.data.collator import TrainingCollator

    return TrainingCollator(processor, is_sharing=settings.optimization.samples_per_picture > 1)


class _Loop:
    """The steps of a run on one process of it."""

    def __init__(
        self,
        settings: TrainSettings,
        accelerator: Accelerator,
        model: nn.Module,
        dataset: Any,
        collator: Callable[[list[Any]], Mapping[str, torch.Tensor]],
    ) -> None:
        chosen = settings.optimization
        self.settings, self.accelerator, self.model = settings, accelerator, model
        self.dataset, self.collator = dataset, collator
        sizes = (chosen.batch_size, chosen.micro_batch_size)
        order = (settings.seed, chosen.is_length_grouped, getattr(dataset, "pictures", None))
        self.order = BatchOrder(dataset.lengths, *sizes, *order, chosen.samples_per_picture)
        self.num_steps = chosen.num_steps or max(1, round((chosen.num_epochs or 0) * self.order.steps_per_epoch))
        self.checkpoints = settings.output_folder / "checkpoints"
        if is_zero(accelerator):
            configure_engine(accelerator, chosen, self.order.num_micro_batches // accelerator.num_processes)
        set_training_mode(model)
        optimizer = build_optimizer(model, settings)
        self.step_module, self.optimizer = accelerator.prepare(TrainingStep(model), optimizer)
        self.data_sum = zlib.crc32(np.asarray(dataset.lengths, dtype=np.int64).tobytes())
        self.validator: Validator | None = None

    def validate_on(self, dataset: Any) -> None:
        """Measure the loss on a dataset that is not learned from, now and then."""
        self.validator = Validator(
            self.settings, self.accelerator, self.model, self.step_module, dataset, self.collator
        )

    def run(self) -> tuple[int, float | None]:
        """Make the steps that are left; returns how many are done and the last logged loss."""
        start, window = self._resume()
        watcher = self._watch(start, window)
        batches = self._batches(start)
        done, saved = start, start
        with watcher if watcher is not None else contextlib.nullcontext(), StopWish() as wish:
            for step in range(start, self.num_steps):
                numbers, rate, norm, is_stopping = self._step(step, batches, wish)
                done = step + 1
                measured = self._validate(done)
                if watcher is not None:
                    watcher.record(done, numbers, rate, norm, measured)
                every = self.settings.saving.every_steps
                if is_stopping or done == self.num_steps or (every and done % every == 0):
                    self._save(done, watcher)
                    saved = done
                if is_stopping:
                    break
        assert saved == done
        return done, watcher.last_loss if watcher is not None else None

    def _validate(self, done: int) -> float | None:
        """Validation loss where it is time to measure it."""
        every = self.settings.watching.validate_every_steps
        is_due = done == self.num_steps or (every and done % every == 0)
        return self.validator.measure() if self.validator is not None and is_due else None

    def _watch(self, start: int, window: Mapping[str, Any] | None) -> Watcher | None:
        settings, accelerator = self.settings, self.accelerator
        if settings.watching.report_to:
            named, folder = {"name": settings.output_folder.name}, settings.output_folder / "trackers"
            folder.mkdir(parents=True, exist_ok=True)
            accelerator.init_trackers(
                settings.watching.project,
                config=_flat(settings.to_dict()),
                init_kwargs={"trackio": named, "wandb": {**named, "dir": str(folder)}},
            )
        if not accelerator.is_main_process:
            return None
        track = accelerator.log if settings.watching.report_to else None
        return Watcher(settings.watching, settings.output_folder, self.num_steps, start, window, track)

    def _batches(self, start: int) -> Iterator[Mapping[str, torch.Tensor]]:
        accelerator = self.accelerator
        ranks = (accelerator.process_index, accelerator.num_processes)
        loader = DataLoader(
            self.dataset,
            batch_sampler=MicroBatchSampler(self.order, start, self.num_steps, *ranks),
            collate_fn=self.collator,
            num_workers=self.settings.num_workers,
            pin_memory=accelerator.device.type == "cuda",
            worker_init_fn=ignore_interrupts,
            generator=torch.Generator(),  # the global one would advance by one draw
        )
        return iter(loader)

    def _step(
        self, step: int, batches: Iterator[Mapping[str, torch.Tensor]], wish: StopWish
    ) -> tuple[StepNumbers, float, float, bool]:
        """One optimizer step: the loss is the mean over the answer tokens of the whole batch, all ranks together."""
        settings, accelerator = self.settings, self.accelerator
        seed_generators(settings.seed, step)
        own = [next(batches) for _ in range(self.order.num_micro_batches // accelerator.num_processes)]
        counts = [
            sum(count_targets(batch["labels"]) for batch in own),
            sum(int(batch["attention_mask"].sum()) for batch in own),
        ]
        num_targets, num_tokens = self._sum(counts)
        if num_targets == 0:
            raise ValueError(f"expected answer tokens in the batch of step {step + 1}, got none. Check its labels.")
        factor = learning_rate_factor(step, self.num_steps, settings.optimization)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        loss, routing = self._backward(step, own, num_targets)
        norm = accelerator.clip_grad_norm_(self.step_module.parameters(), settings.optimization.clip_norm or math.inf)
        total, wishes, *routed = self._sum([loss, float(wish.is_wished), *routing.flatten().tolist()])
        if not math.isfinite(total):
            raise ValueError(
                f"expected a finite loss, got {total} at step {step + 1}. The last checkpoint is untouched; lower "
                "`optimization.learning_rate`, or look at the data of that step."
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        layers = torch.tensor(routed, dtype=torch.float64).view(routing.shape).tolist()
        norm = float(whole_tensor(torch.as_tensor(0.0 if norm is None else norm)))
        numbers = StepNumbers(total, num_targets, num_tokens, float(settings.optimization.batch_size), 1, layers)
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        return numbers, rate, norm, wishes > 0

    def _backward(
        self, step: int, own: Sequence[Mapping[str, torch.Tensor]], num_targets: float
    ) -> tuple[float, torch.Tensor]:
        """Add up the gradients of this rank's micro-batches; their summed loss and who spoke."""
        settings, accelerator = self.settings, self.accelerator
        rank, num_ranks = accelerator.process_index, accelerator.num_processes
        total, routing = 0.0, torch.zeros(())
        for place, batch in enumerate(own):
            seed_generators(settings.seed, step, place * num_ranks + rank)  # the same numbers on any number of ranks
            is_last = place == len(own) - 1
            sharing = contextlib.nullcontext() if is_last else accelerator.no_sync(self.step_module)
            with sharing, _attention_kernels(accelerator.device, settings.optimization):
                window = target_window(batch["labels"])
                inputs = {name: value.to(accelerator.device, non_blocking=True) for name, value in batch.items()}
                loss, sums = self.step_module(inputs, self._routing(step), window)
                scale = num_ranks / num_targets  # ranks' gradients are averaged
                if is_zero(accelerator):  # whose engine divides by the micro-batches, and steps after the last
                    scale *= len(own)
                    accelerator.gradient_state._set_sync_gradients(is_last)
                accelerator.backward(loss * scale)
            total += loss.item()
            routing = sums + routing.to(sums.device)
        return total, routing

    def _routing(self, step: int) -> dict[str, Any]:
        """Stage 1: one expert, drawn from seed and step alone, so that all ranks draw alike."""
        settings = self.settings
        routing: dict[str, Any] = {"mode": settings.routing_mode, "top_k": settings.top_k}
        if settings.routing_mode == "random_expert":
            routing["seed"] = int(np.random.SeedSequence((settings.seed, step, 1)).generate_state(1)[0])
        return routing

    def _sum(self, values: Sequence[float]) -> list[float]:
        """Add numbers up over ranks."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
        return self.accelerator.reduce(tensor, reduction="sum").tolist()

    def _state(self) -> dict[str, Any]:
        return {"settings": self.settings.to_dict(), "num_samples": len(self.dataset), "data_sum": self.data_sum}

    def _save(self, done: int, watcher: Watcher | None) -> None:
        collect = collect_zero_state if is_zero(self.accelerator) else collect_state
        weights, moments = collect(self.model, self.optimizer)
        problem = ""
        if watcher is not None:
            state = {**self._state(), "window": asdict(watcher.window)}
            try:
                write_checkpoint(self.checkpoints, done, weights, moments, state, self.settings.saving.keep)
            except CheckpointError as error:
                problem = str(error)
        if self._sum([float(bool(problem))])[0]:  # other ranks must not wait for a main process that has left
            raise CheckpointError(problem or "the main process could not write a checkpoint; see its message.")

    def _resume(self) -> tuple[int, Mapping[str, Any] | None]:
        """Steps done, and the sums since the last line of the log."""
        found, broken = find_newest_checkpoint(self.checkpoints)
        is_main = self.accelerator.is_main_process
        for name, problem in broken.items() if is_main else ():
            print(f"checkpoint {name} is not whole and is skipped: {problem}", flush=True)
        if found is None:
            return 0, None
        weights, moments, state = read_checkpoint(found)
        _check_same_run(state, self._state(), found)
        restore = restore_zero_state if is_zero(self.accelerator) else restore_state
        restore(self.model, self.optimizer, weights, moments)
        if is_main:
            print(f"going on after step {state['step']} of {self.num_steps} ({found})", flush=True)
        return int(state["step"]), state.get("window")


def _attention_kernels(device: torch.device, settings: OptimizationSettings) -> contextlib.AbstractContextManager[None]:
    """On CPUs the fused kernel's bfloat16 backward takes 45 % of a step; plain products are faster."""
    if device.type == "cpu" and settings.precision == "bf16":
        return sdpa_kernel(SDPBackend.MATH)
    return contextlib.nullcontext()


def _check_same_run(old: Mapping[str, Any], new: Mapping[str, Any], checkpoint: Path) -> None:
    """Refuse to go on with other settings or other data."""
    before, now = (_flat(_bound_settings(state["settings"])) for state in (old, new))
    changed = [name for name in sorted(set(before) | set(now)) if before.get(name) != now.get(name)]
    if changed:
        name = changed[0]
        raise CheckpointError(
            f"expected the settings that {checkpoint} was written with, but `{name}` was {before.get(name)!r} and is "
            f"{now.get(name)!r}. Set it back, or choose another `output_folder`."
        )
    if (old["num_samples"], old["data_sum"]) != (new["num_samples"], new["data_sum"]):
        raise CheckpointError(
            f"expected the data that {checkpoint} was trained on ({old['num_samples']} samples), got other data "
            f"({new['num_samples']} samples). Restore it, or choose another `output_folder`."
        )


def _bound_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    bound = {name: value for name, value in settings.items() if name not in _FREE_SETTINGS}
    for group, names in _FREE_NESTED.items():
        bound[group] = {name: value for name, value in bound[group].items() if name not in names}
    return bound


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings with dotted names; lists become text, as trackers want them."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
