"""The training loop: several single-threaded processes, one gradient, a resumable state.

On a machine with few and busy cores, processes of one thread each that meet once per step are several times faster
than one process whose threads meet in every matrix product.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .checkpointing import latest_checkpoint, load_checkpoint, save_checkpoint
from .muon import MuonAdamW

__all__ = ["LoopSettings", "learning_rate", "run_loop"]

#: A step's work: (step, rank, number of ranks) -> (loss summed over this rank's items, counts to add up over ranks).
#: The first count is the loss's denominator.
StepFunction = Callable[[int, int, int], tuple[torch.Tensor, dict[str, float]]]

_SMALLEST_MUON_SIDE = 16  # a matrix of few rows is rather a set of vectors


@dataclass(frozen=True)
class LoopSettings:
    """How to optimise.

    Attributes:
        num_steps: Optimizer steps in all.
        learning_rate: Peak.
        warmup_steps: Linear rise.
        final_share: The cosine ends at this share of the peak.
        weight_decay: Of matrices; vectors and embeddings have none.
        clip_norm: Largest gradient norm.
        checkpoint_every_s: Seconds between checkpoints.
        log_every: Steps between log lines.
        slow_learning_rate: Peak for parameters whose name contains one of ``slow_names``; None = the same.
        slow_names: See above.
        use_muon: Update matrices by Muon (:mod:`moai.training.muon`) in place of AdamW.
    """

    num_steps: int
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    final_share: float = 0.05
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    checkpoint_every_s: float = 180.0
    log_every: int = 20
    slow_learning_rate: float | None = None
    slow_names: tuple[str, ...] = ()
    use_muon: bool = False


def learning_rate(step: int, settings: LoopSettings) -> float:
    """Factor on the peak rate at a step: linear rise, then a cosine."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.num_steps - settings.warmup_steps)
    return settings.final_share + (1 - settings.final_share) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def build_optimizer(model: nn.Module, settings: LoopSettings) -> torch.optim.Optimizer:
    """AdamW, or Muon for matrices and AdamW for the rest, with the groups that ``settings`` names."""
    groups: dict[tuple[bool, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.dim() > 1 and "embed" not in name
            is_slow = settings.slow_learning_rate is not None and any(part in name for part in settings.slow_names)
            is_matrix = parameter.dim() == 2 and min(parameter.shape) >= _SMALLEST_MUON_SIDE
            groups.setdefault((decays, is_slow, settings.use_muon and decays and is_matrix), []).append(parameter)
    rows: list[dict[str, Any]] = []
    for (decays, is_slow, by_muon), parameters in groups.items():
        peak = settings.slow_learning_rate if is_slow else settings.learning_rate
        decay = settings.weight_decay if decays else 0.0
        rows.append({"params": parameters, "lr": peak, "peak": peak, "weight_decay": decay})
        if settings.use_muon:
            rows[-1]["use_muon"] = by_muon
    if settings.use_muon:
        return MuonAdamW(rows, betas=(0.9, 0.98), eps=1e-8)
    return torch.optim.AdamW(rows, betas=(0.9, 0.98), eps=1e-8, foreach=True)


class _Stop:
    """Turns the first Ctrl-C or SIGTERM into a wish that all ranks hear at the end of a step."""

    def __init__(self) -> None:
        self.is_wished = False
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, self._wish)

    def _wish(self, number: int, frame: Any) -> None:
        self.is_wished = True
        signal.signal(number, signal.SIG_DFL)  # a second one ends at once


def _share(parameters: list[nn.Parameter], counts: dict[str, float], names: list[str], wish: bool) -> bool:
    """Add gradients and counts up over ranks; True when some rank wishes to stop."""
    values = torch.tensor([*(counts.get(name, 0.0) for name in names), float(wish)], dtype=torch.float32)
    if dist.is_initialized():
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([*(grad.reshape(-1) for grad in grads), values])
        dist.all_reduce(flat)
        position = 0
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = flat[position : position + grad.numel()].view_as(grad)
            position += grad.numel()
        values = flat[position:]
    counts.update(zip(names, values.tolist(), strict=False))
    return bool(values[-1] > 0)


def run_loop(
    model: nn.Module,
    step_function: StepFunction,
    count_names: list[str],
    settings: LoopSettings,
    folder: Path,
    rank: int = 0,
    num_ranks: int = 1,
) -> bool:
    """Train, or go on training from the folder's last checkpoint.

    Args:
        model: What is trained; all ranks start from equal weights.
        step_function: A step's loss sum and counts; a function of (step, rank, ranks) alone, so that a resumed run
            sees what an unbroken one sees.
        count_names: Names of the counts, the loss's denominator first.
        settings: How to optimise.
        folder: Receives ``checkpoints/`` and ``log.jsonl``.
        rank: This process.
        num_ranks: How many there are.

    Returns:
        True when all steps are done, False when stopped by a signal.
    """
    optimizer = build_optimizer(model, settings)
    parameters = [p for p in model.parameters() if p.requires_grad]
    start, checkpoints = 0, folder / "checkpoints"
    if (found := latest_checkpoint(checkpoints)) is not None:
        start = load_checkpoint(found, model, optimizer)["step"]
    elif dist.is_initialized():
        for value in model.state_dict().values():
            dist.broadcast(value, src=0)
    stop, saved, began = _Stop(), time.monotonic(), time.monotonic()
    window: dict[str, float] = {}
    for step in range(start, settings.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate(step, settings)
        # On CPUs the fused kernel's bfloat16 backward took 45 % of a step; plain products are 1.7 times faster in all.
        with sdpa_kernel(SDPBackend.MATH):
            loss, counts = step_function(step, rank, num_ranks)
            loss.backward()
        counts = {**counts, "loss_sum": loss.item()}
        is_stopping = _share(parameters, counts, [*count_names, "loss_sum"], stop.is_wished)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad /= max(counts[count_names[0]], 1.0)
        norm = nn.utils.clip_grad_norm_(parameters, settings.clip_norm, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        for name, value in counts.items():
            window[name] = window.get(name, 0.0) + value
        done = step + 1
        if rank == 0 and (done % settings.log_every == 0 or done == settings.num_steps):
            _log(folder, done, window, count_names, float(norm), optimizer, time.monotonic() - began)
        if done % settings.log_every == 0:
            window = {}
        is_due = time.monotonic() - saved > settings.checkpoint_every_s
        if rank == 0 and (is_due or is_stopping or done == settings.num_steps):
            save_checkpoint(checkpoints, done, model, optimizer)
            saved = time.monotonic()
        if is_stopping:
            return False
    return True


def _log(
    folder: Path,
    step: int,
    window: dict[str, float],
    names: list[str],
    norm: float,
    optimizer: torch.optim.Optimizer,
    seconds: float,
) -> None:
    """One JSON line: loss, shares `right_x / asked_x` as accuracies, norm, rate, time."""
    line: dict[str, Any] = {"step": step, "loss": window["loss_sum"] / max(window[names[0]], 1.0)}
    for name in names:
        if name.startswith("asked_"):
            asked = window.get(name, 0.0)
            line[name.removeprefix("asked_")] = window.get(f"right_{name[6:]}", 0.0) / asked if asked else None
    line |= {"norm": norm, "rate": optimizer.param_groups[0]["lr"], "seconds": seconds}
    line |= {name: window[name] for name in names if name in ("scenes", "tokens")}
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in line.items()}) + "\n")
    shown = " ".join(f"{k}={v:.3f}" for k, v in line.items() if isinstance(v, float) and k not in ("rate", "tokens"))
    print(f"step {step} {shown}", flush=True)


def start_ranks(work: Callable[..., None], num_ranks: int, rendezvous: Path, *arguments: Any) -> None:
    """Run ``work(rank, num_ranks, *arguments)`` in several processes of one thread each, joined by gloo.

    Args:
        work: A module-level function.
        num_ranks: Processes; 1 runs it here.
        rendezvous: A file they meet at; removed first.
        *arguments: Passed on; picklable.
    """
    # Every new shape makes oneDNN keep a compiled kernel: with the default of 1,024 memory grows by gigabytes.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    if num_ranks == 1:
        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
        work(0, 1, *arguments)
        return
    rendezvous.parent.mkdir(parents=True, exist_ok=True)
    rendezvous.unlink(missing_ok=True)
    torch.multiprocessing.spawn(_join, (work, num_ranks, str(rendezvous), arguments), nprocs=num_ranks)


def _join(rank: int, work: Callable[..., None], num_ranks: int, rendezvous: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=num_ranks)
    try:
        work(rank, num_ranks, *arguments)
    finally:
        dist.destroy_process_group()
