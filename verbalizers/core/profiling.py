"""Seconds and peak memory of each verbalizer, measured one after the other."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from verbalizers.core.scene import as_rgb_array, parse_scene
from verbalizers.core.structures import Scene
from verbalizers.core.verbalizer import Verbalizer, order_by_use

__all__ = ["TOGETHER", "Cost", "profile_scene"]

TOGETHER = "all, side by side"
"""Name of the cost of all verbalizers at once."""


@dataclass(frozen=True)
class Cost:
    """What one verbalizer, or all of them together, took for one image.

    Attributes:
        name: "kind/backend", or `TOGETHER`.
        seconds: wall-clock time, the model being loaded.
        first_seconds: the first look, which loads the model too; None where it was not the first.
        peak_mib: most memory of the process above what it held before, in MiB; of the first look where it was one,
            so that the weights count.
        peak_gpu_mib: the same on CUDA devices, as torch's allocator counts; None without one.
        failure: what went wrong, or "".
    """

    name: str
    seconds: float
    first_seconds: float | None
    peak_mib: float
    peak_gpu_mib: float | None
    failure: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Values that `json.dumps` accepts."""
        return asdict(self)


def profile_scene(
    image: Image.Image | np.ndarray,
    verbalizers: Sequence[Verbalizer],
    timeout_s: float | None = None,
    is_first: bool = True,
) -> tuple[Scene, list[Cost]]:
    """Look at an image with each verbalizer alone, then with all at once, and say what it took.

    Args:
        image: PIL image or uint8 `(H, W, 3)` RGB array.
        verbalizers: at most one per kind.
        timeout_s: seconds each has per look; None = no limit.
        is_first: whether their models are not loaded yet. Then each runs twice: once with loading, once without.

    Returns:
        What was found, and one cost per verbalizer, then, where there are several, that of all side by side.
    """
    costs = []
    image = as_rgb_array(image)
    scene = Scene(image_size_hw=image.shape[:2])
    gc.collect()  # once: what earlier work left behind is nobody's memory
    for verbalizer in (each for group in order_by_use(verbalizers) for each in group):

        def look(chosen: tuple[Verbalizer, ...] = (verbalizer,), known: tuple[Scene, ...] = (scene,)) -> Scene:
            return parse_scene([image], chosen, timeout_s, known)[0]

        first_seconds = None
        scene, seconds, peaks = _measure(look)
        failure = scene.failures.get(verbalizer.kind, "")
        if is_first:
            first_seconds = seconds
            if not failure:
                scene, seconds, _ = _measure(look)
        costs.append(Cost(f"{verbalizer.kind}/{verbalizer.backend}", seconds, first_seconds, *peaks, failure))
    if len(verbalizers) > 1:
        together, seconds, peaks = _measure(lambda: parse_scene([image], verbalizers, timeout_s)[0])
        failure = "; ".join(f"{kind}: {reason}" for kind, reason in together.failures.items())
        costs.append(Cost(TOGETHER, seconds, None, *peaks, failure))
    return scene, costs


def _measure(look: Callable[[], Scene]) -> tuple[Scene, float, tuple[float, float | None]]:
    """The scene, seconds, and peak MiB of the process and of CUDA devices above the level before."""
    before, gpu_before = _start_host_record(), _start_gpu_record()
    start = time.perf_counter()
    scene = look()
    seconds = time.perf_counter() - start
    gpu_peak = _gpu_mib(is_peak=True)
    if gpu_peak is not None:
        gpu_peak -= gpu_before or 0.0  # None: CUDA came up only now, nothing was held before
    return scene, seconds, (max(_host_peak_mib() - before, 0.0), gpu_peak)


def _start_host_record() -> float:
    """Let the kernel's record of the peak begin anew, and return the present level in MiB."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget VmHWM
        return _resident_mib("VmRSS")
    except OSError:
        return _host_peak_mib()  # elsewhere the record only grows: what exceeds it counts


def _host_peak_mib() -> float:
    try:
        return _resident_mib("VmHWM")
    except OSError:
        import resource

        unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss: bytes on macOS, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _resident_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 2**10
    raise OSError(f"/proc/self/status has no {field}")


def _start_gpu_record() -> float | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    for index in range(torch.cuda.device_count()):
        torch.cuda.synchronize(index)
        torch.cuda.reset_peak_memory_stats(index)
    return _gpu_mib(is_peak=False)


def _gpu_mib(is_peak: bool) -> float | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    read = torch.cuda.max_memory_allocated if is_peak else torch.cuda.memory_allocated
    return sum(read(index) for index in range(torch.cuda.device_count())) / 2**20
