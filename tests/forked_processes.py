"""Processes forked off the tests' own: real ones, which can be killed, without the seconds that importing torch takes.

How a fresh interpreter starts, and what a launcher does, is not seen here: other tests start the commands themselves.
A backward pass on torch's meta device starts threads of autograd, after which no fork of that process may use autograd:
tests give such passes a fork of their own (:func:`in_a_fork`), so that tests may run in any order.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import random
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
import torch

REPO_ROOT = Path(__file__).resolve().parent.parent
_OF_A_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class ForkedProcess:
    """Does some work in a process of its own, as far as tests need it with the interface of ``subprocess.Popen``.

    Args:
        work: What to do; its ``SystemExit`` is the exit code.
        folder: Where.
        **environment: Variables.

    Attributes:
        pid: Number of the process.
    """

    def __init__(self, work: Callable[[], object], folder: Path = REPO_ROOT, **environment: str) -> None:
        self._output: IO[str] = TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed with this object
        arguments = (work, self._output.fileno(), folder, environment)
        self._process = multiprocessing.get_context("fork").Process(target=_work, args=arguments)
        self._process.start()
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code; minus the signal that ended the process; None while it runs."""
        return self._process.exitcode

    @property
    def printed(self) -> str:
        """What was printed so far, on both of its outputs."""
        return os.pread(self._output.fileno(), os.fstat(self._output.fileno()).st_size, 0).decode("utf-8")

    def poll(self) -> int | None:
        """The same."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to the process."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """``kill -9``."""
        self._process.kill()

    def communicate(self, timeout: float = 400) -> tuple[str, None]:
        """Wait for the end; all that was printed, as with ``stderr=STDOUT``."""
        self._process.join(timeout)
        if self.returncode is None:
            self.kill()
            raise TimeoutError(f"process {self.pid} had not ended after {timeout} s")
        return self.printed, None


def _work(work: Callable[[], object], output: int, folder: Path, environment: dict[str, str]) -> None:
    for number in (1, 2):
        os.dup2(output, number)
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", buffering=1, closefd=False) for number in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    for name in _OF_A_RANK:
        os.environ.pop(name, None)
    os.environ.update({"OMP_NUM_THREADS": "1"} | environment)
    torch.set_num_threads(1)
    for seed in (random.seed, np.random.seed, torch.seed):  # nothing is to depend on what was drawn before
        seed()
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    work()


def in_a_fork(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, each call in a process of its own; what it returns or raises comes back."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(
            target=_send_result, args=(sender, function, arguments, keywords)
        )
        process.start()
        sender.close()  # so that the end of a process that sends nothing is noticed
        try:
            if not receiver.poll(400):
                process.kill()
            result = receiver.recv()
        except EOFError:
            process.join()
            raise AssertionError(f"{function} ended with {process.exitcode} and sent nothing") from None
        finally:
            receiver.close()
            process.join()
        if isinstance(result, Exception):
            raise result
        return result

    return call


def _send_result(
    sender: multiprocessing.connection.Connection, function: Callable[..., Any], arguments: tuple, keywords: dict
) -> None:
    try:
        result = function(*arguments, **keywords)
    except Exception as error:  # noqa: BLE001 - the caller raises it
        result = error
    sender.send(result)


def wait_for_line(process: ForkedProcess, part: str) -> str:
    """Wait until a process prints a line that holds this; the line."""
    until = time.monotonic() + 300
    while time.monotonic() < until and process.poll() is None:
        for line in process.printed.splitlines(keepends=True):
            if part in line and line.endswith("\n"):
                return line
        time.sleep(0.02)
    raise AssertionError(f"no {part!r} in: {process.printed}")


def run_module(name: str, *arguments: str) -> None:
    """``python -m name arguments``, in the process that this is called in."""
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def start_ranks(work: Callable[[], object], num_processes: int, **environment: str) -> list[ForkedProcess]:
    """Start processes that find each other as torchrun's do.

    Args:
        work: What each does.
        num_processes: How many.
        **environment: Further variables.
    """
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    size = str(num_processes)
    told = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_processes)]
    return [ForkedProcess(work, **environment | told | rank) for rank in ranks]


def run_ranks(work: Callable[[], object], num_processes: int, **environment: str) -> str:
    """Run :func:`start_ranks` to the end; what the processes print, one after the other."""
    ranks = start_ranks(work, num_processes, **environment)
    printed = [rank.communicate()[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * num_processes, "\n".join(printed)
    return "".join(printed)
