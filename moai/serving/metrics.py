"""Counters of the server in Prometheus' text form."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

__all__ = ["Metrics"]

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_BATCH_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_HISTOGRAMS: dict[str, tuple[str, Sequence[float]]] = {
    "moai_stage_seconds": ("Seconds per stage: prepare (read an image), look (verbalizers), generate.", _SECONDS),
    "moai_request_seconds": ("Seconds from a request's last byte to its answer's end.", _SECONDS),
    "moai_batch_size": ("Requests per pass of the model.", _BATCH_SIZES),
}
_COUNTERS = {
    "moai_requests_total": "Requests by path and status.",
    "moai_scene_cache_total": "Images whose scene was kept (hit) or had to be found (miss).",
    "moai_tokens_total": "Tokens of prompts and answers.",
}


class Metrics:
    """Counters, histograms and gauges by name and label. May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], float] = defaultdict(float)
        self._buckets: dict[tuple[str, str], list[int]] = {}
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        with self._lock:
            self._counts[name, _format_labels(labels)] += amount

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add a value to a histogram."""
        key, bounds = (name, _format_labels(labels)), _HISTOGRAMS[name][1]
        with self._lock:
            buckets = self._buckets.setdefault(key, [0] * (len(bounds) + 1))
            buckets[sum(value > bound for bound in bounds)] += 1
            self._counts[f"{name}_sum", key[1]] += value

    @contextmanager
    def timing(self, stage: str) -> Iterator[None]:
        """Measure the seconds of a stage."""
        start = perf_counter()
        try:
            yield
        finally:
            self.observe("moai_stage_seconds", perf_counter() - start, stage=stage)

    def watch(self, name: str, what: str, read: Callable[[], float]) -> None:
        """Add a gauge, which is read when it is shown."""
        self._gauges[name] = what, read

    def read(self, name: str, **labels: str) -> float:
        """A counter's value."""
        with self._lock:
            return self._counts.get((name, _format_labels(labels)), 0.0)

    def render(self) -> str:
        """All of them in Prometheus' text form."""
        lines = []
        for name, (what, read) in self._gauges.items():
            lines += [f"# HELP {name} {what}", f"# TYPE {name} gauge", f"{name} {read():g}"]
        with self._lock:
            for name, what in _COUNTERS.items():
                lines += [f"# HELP {name} {what}", f"# TYPE {name} counter"]
                lines += [f"{name}{_braces(labels)} {n:g}" for (key, labels), n in self._counts.items() if key == name]
            for name, (what, bounds) in _HISTOGRAMS.items():
                lines += [f"# HELP {name} {what}", f"# TYPE {name} histogram"]
                for (key, labels), buckets in self._buckets.items():
                    if key != name:
                        continue
                    prefix, total = f"{labels}," if labels else "", 0
                    for bound, number in zip([*map(str, bounds), "+Inf"], buckets, strict=True):
                        total += number
                        lines.append(f'{name}_bucket{{{prefix}le="{bound}"}} {total}')
                    lines.append(f"{name}_sum{_braces(labels)} {self._counts[f'{name}_sum', labels]:g}")
                    lines.append(f"{name}_count{_braces(labels)} {total}")
        return "\n".join(lines) + "\n"


def _format_labels(labels: dict[str, str]) -> str:
    return ",".join(f'{name}="{value}"' for name, value in labels.items())


def _braces(labels: str) -> str:
    return f"{{{labels}}}" if labels else ""
