"""Processes of a run: start, random seeds, interrupts."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moai.import_utils import require
from verbalizers.core.durable_files import hold_folder
from verbalizers.store.local_engine import count_cores

from .train_settings import RunSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "InterruptHandler",
    "check_num_processes",
    "count_workers",
    "hold_output",
    "ignore_helpers",
    "ignore_interrupts",
    "raising_together",
    "seed_generators",
    "start_accelerator",
]

_SECONDS_TO_FINISH = 0.3
_TORCHRUN = "ACCELERATE_USE_CPU=1 torchrun --nproc_per_node N -m moai.training --config FILE"


def start_accelerator(settings: RunSettings) -> Accelerator:
    """Join the processes that a launcher started, on CPU or GPU.

    Args:
        settings: The recipe.

    Raises:
        ImportError: accelerate, or a tracker that is asked for, is not installed.
        ValueError: Another number of processes runs than was asked for.
    """
    require("accelerate", purpose="Training")
    for tracker in settings.watching.report_to:
        require(tracker, purpose=f"`watching.report_to: {tracker}`")
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    # A second run in one process may have another precision; accelerate keeps the first one's otherwise.
    AcceleratorState._reset_state()
    # On CPUs oneDNN keeps a compiled kernel for every shape: with its default of 1,024 memory grows by gigabytes.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    # An expert that was not drawn, or a batch without images, leaves parameters without gradient.
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(
        mixed_precision="bf16" if settings.optimization.precision == "bf16" else "no",
        log_with=list(settings.watching.report_to) or None,
        project_dir=settings.output_folder / "trackers",
        kwargs_handlers=[ddp],
    )
    atexit.unregister(_let_threads_finish)  # of a run before in this process
    atexit.register(_let_threads_finish)
    check_num_processes(settings.num_processes, accelerator.num_processes, os.environ)
    return accelerator


def _let_threads_finish() -> None:
    """Let gloo's threads drop the tensors of the last meeting: one that has to while Python ends aborts it (code 134).

    They cannot be joined: a DistributedDataParallel never lets go of its process group.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        time.sleep(_SECONDS_TO_FINISH)


def check_num_processes(expected: int | None, running: int, environment: Mapping[str, str]) -> None:
    """Check that as many processes were started as were asked for: fewer would only be slower, silently.

    ``accelerate launch --cpu --num_processes 2`` (accelerate 1.15) starts one process; it leaves an address to meet at
    in the environment, and nobody to meet.

    Args:
        expected: ``num_processes`` of the recipe.
        running: How many run.
        environment: Environment variables.

    Raises:
        ValueError: The numbers differ.
    """
    if expected is not None and expected != running:
        raise ValueError(
            f"expected {expected} processes (`num_processes`), got {running}. On CPUs start them with: {_TORCHRUN}; on "
            "GPUs with: accelerate launch --num_processes N -m moai.training --config FILE."
        )
    is_on_cpu = environment.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    has_address = "MASTER_PORT" in environment and "ACCELERATE_MIXED_PRECISION" in environment
    if running == 1 and is_on_cpu and has_address and "WORLD_SIZE" not in environment:
        raise ValueError(
            "expected several processes, got one: `accelerate launch` starts a single process on CPUs whatever "
            f"--num_processes says. Use: {_TORCHRUN}; or --num_processes 1."
        )


def seed_generators(*numbers: int) -> None:
    """Seed all generators from a few numbers, so that random numbers depend on nothing that happened before.

    Args:
        *numbers: For example seed, step and micro-batch.
    """
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def count_workers(chosen: int | None, num_ranks: int) -> int:
    """Processes that prepare a rank's batches.

    Args:
        chosen: ``num_workers`` of the recipe. None: one where this machine's cores are at least two per rank and new
            processes are forks; others would begin by importing a user's script and loading torch.
        num_ranks: Ranks of the run, for a launcher that does not say how many are on this machine.
    """
    if chosen is not None:
        return chosen
    on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", num_ranks))
    return int(multiprocessing.get_start_method() == "fork" and count_cores() >= 2 * on_this_machine)


def ignore_interrupts(worker: int) -> None:
    """Ignore Ctrl-C in a process that prepares batches: the trainer still needs it to finish its step.

    Args:
        worker: Its number.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # not SIGTERM, by which such a process is ended


@contextmanager
def ignore_helpers() -> Iterator[None]:
    """Let the end of processes that prepare batches break nothing off: torch raises it wherever the trainer is."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGCHLD)
    for _ in range(2):  # the first call may raise an end that has come already
        with suppress(RuntimeError):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, previous or signal.SIG_DFL)


@contextmanager
def raising_together(accelerator: Accelerator, *kinds: type[Exception]) -> Iterator[None]:
    """End all processes where the main one fails: the others must not wait for one that has left.

    Args:
        accelerator: Joins the processes.
        *kinds: Errors that the main process may raise.

    Raises:
        Exception: The error, on the main process.
        SystemExit: On the others.
    """
    problem = None
    try:
        yield
    except kinds as error:
        problem = error
    if accelerator.num_processes > 1:
        has_problem = torch.tensor([float(problem is not None)], device=accelerator.device)
        if accelerator.reduce(has_problem, reduction="sum")[0] and problem is None:
            raise SystemExit(1)
    if problem is not None:
        raise problem


@contextmanager
def hold_output(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Hold a run's folder for all of its processes; a thread that holds it already goes on.

    Args:
        folder: Of the run.
        accelerator: Joins the processes; the main one holds the folder.

    Raises:
        ValueError: Another run writes there; the message says which process.
    """
    with ExitStack() as held:
        with raising_together(accelerator, ValueError):
            if accelerator.is_main_process:
                held.enter_context(hold_folder(folder))
        yield


class InterruptHandler:
    """Handler of Ctrl-C and SIGTERM: the first one stops the run after its step, the second one at once."""

    def __init__(self) -> None:
        self.is_interrupted = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> InterruptHandler:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python refuses handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.is_interrupted = True
        signal.signal(number, signal.SIG_DFL)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
