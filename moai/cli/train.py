"""``moai train``: one stage of training, in this process or in several."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from .errors import reporting_errors
from .options import DebugOption

__all__ = ["launch_processes", "train"]

#: How long processes may finish a step and save after Ctrl-C, SIGTERM or the end of one of them.
_SAVING_SECONDS = 600


def train(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings laid over the recipe.")
    ] = None,
    config: Annotated[
        Path, typer.Option("--config", "-c", help="Recipe: a file, or the name of a bundled one (train_stage1.yaml).")
    ] = ...,
    processes: Annotated[
        int, typer.Option("--processes", min=1, help="Processes on this machine; several on CPUs meet through gloo.")
    ] = 1,
    debug: DebugOption = False,
) -> None:
    """Train one stage: moai train --config configs/train_stage1.yaml optimization.num_steps=100.

    The same command again goes on after a kill. Exit codes: 0 = done, 1 = failed, 130 = stopped, with a checkpoint.
    """
    with reporting_errors(debug):
        if processes > 1:
            words = ["--config", str(config), *(overrides or []), f"num_processes={processes}", *["--debug"] * debug]
            raise typer.Exit(launch_processes(processes, words, is_debugging=debug))
        if not debug:
            from .answer_settings import silence_libraries

            silence_libraries()
        from ..training.__main__ import train as run

        if code := run(config, overrides or []):
            raise typer.Exit(code)


def launch_processes(
    num_processes: int, words: Sequence[str], module: str = "moai.training", is_debugging: bool = False
) -> int:
    """Start ``python -m MODULE`` in several processes with torchrun.

    accelerate's own launcher starts only one on CPUs (accelerate 1.15), so torchrun it is; for several machines,
    FSDP and DeepSpeed use ``accelerate launch --config_file configs/accelerate/...``.

    Args:
        num_processes: How many.
        words: The module's arguments.
        module: What each process runs.
        is_debugging: Show what torchrun itself has to say.

    Returns:
        Exit code.
    """
    import torch

    from ..training.launcher import LAUNCHER

    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment["ACCELERATE_USE_CPU"] = "1"
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
    environment.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_SAVING_SECONDS))
    torchrun = ("-m", "torch.distributed.run") if is_debugging else LAUNCHER
    launcher = [*torchrun, "--standalone", "--nproc_per_node", str(num_processes)]
    # In a session of its own: a terminal's Ctrl-C would reach the processes twice, from it and from torchrun, and the
    # second one ends them before they have saved.
    process = subprocess.Popen(
        [sys.executable, *launcher, "-m", module, *words], env=environment, start_new_session=True
    )
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    is_main = threading.current_thread() is threading.main_thread()
    previous = {
        number: signal.signal(number, lambda number, frame: process.send_signal(number))
        for number in (numbers if is_main else ())
    }
    try:
        return process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
