"""How the benchmarks measure: alternating calls, medians with spread, peak memory of fresh processes."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

# glibc keeps freed blocks for itself. With these, every large tensor is mapped on its own and handed back
# when freed, so that the resident size follows what the computation really holds.
ALLOCATOR_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
}


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements, in the measurements' unit."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Summarise measurements; fewer than two have no spread."""
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, lower, upper)

    def shown(self, digits: int = 1) -> str:
        """``median [lower-upper]``."""
        return f"{self.median:.{digits}f} [{self.lower:.{digits}f}-{self.upper:.{digits}f}]"


def markdown_table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table: the first column of words, the others of numbers."""
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def synchronize(device: torch.device) -> None:
    """Wait until an accelerator has finished what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_alternating(
    calls: Mapping[str, Callable[[], None]],
    num_rounds: int,
    device: torch.device,
    num_warmups: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time calls in turn, A B C, C B A, A B C ...: what disturbs the machine disturbs all, a drift cancels.

    Args:
        calls: What to time, by name; calls that are to be compared stand side by side.
        num_rounds: Timed rounds.
        device: Where the calls run.
        num_warmups: Untimed rounds before.
        clock: Seconds so far; ``time.process_time`` counts what this process's threads were given, not what they
            waited while other programs had the processor.

    Returns:
        Milliseconds of every round, by name; entry r of each list belongs to the same round.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    in_turn = list(calls.items())
    gc.collect()
    gc.disable()
    try:
        for round_index in range(num_warmups + num_rounds):
            for name, call in in_turn[:: 1 if round_index % 2 == 0 else -1]:
                synchronize(device)
                start = clock()
                call()
                synchronize(device)
                if round_index >= num_warmups:
                    times[name].append((clock() - start) * 1e3)
            gc.collect()
    finally:
        gc.enable()
    return times


def paired_ratio(numerator: list[float], denominator: list[float]) -> Spread:
    """Ratio of two calls, round by round."""
    return Spread.of([above / below for above, below in zip(numerator, denominator, strict=True)])


def _resident_kib(field: str) -> int | None:
    """``VmRSS`` or ``VmHWM`` of this process in KiB where the kernel tells."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    for line in status.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    return None


def _reset_peak() -> bool:
    """Let the kernel's record of the peak resident size start anew; False where it cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_memory_mib(call: Callable[[], None], device: torch.device) -> float:
    """Peak memory that one call needs on top of what was held before it, in MiB.

    Run it in a process of its own, see :func:`measure_in_fresh_process`.

    Args:
        call: What to measure; called once.
        device: Where it runs; on the CPU the resident size is read, on CUDA the allocator's record.

    Returns:
        MiB above the level before the call.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    before = _resident_kib("VmRSS") if _reset_peak() else None
    if before is not None:
        call()
        return (_resident_kib("VmHWM") - before) / 2**10
    unit = 1 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit / 2**20


def measure_in_fresh_process(module: str, arguments: list[str]) -> dict:
    """Run ``python -m module arguments`` and read the JSON object on its last line.

    Args:
        module: A benchmark module whose main prints a JSON object last.
        arguments: Its command line.

    Returns:
        The object.

    Raises:
        RuntimeError: If the process fails, with the end of its output.
    """
    result = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, **ALLOCATOR_SETTINGS},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def describe_machine(device: torch.device) -> str:
    """One line: processor, threads, versions, and how busy the machine is: a busy one measures badly."""
    processor = "unknown CPU"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    cores = os.cpu_count()
    return f"{processor}, {cores} cores, {torch.get_num_threads()} threads{load}, torch {torch.__version__}"
