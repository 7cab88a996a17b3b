"""The local engine: worker processes that build their own verbalizers, and are replaced when they die.

Processes are spawned, not forked: a fork would copy the locks of libraries that run threads and hang in them. A worker
that dies (a crash in native code, the kernel's memory killer) takes nothing with it: the images that were out are
verbalized one by one, and the one that kills its worker again is reported.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from verbalizers.store.work import Outcome, Work, WorkSettings, verbalize_works

__all__ = ["count_cores", "run_here", "run_processes"]

#: So many images in a row that kill their worker mean that no image is at fault.
_DEATHS_TO_STOP = 8
_DEATH = (
    "the worker process died while looking at this image, alone: a crash in a library's native code, or killed for "
    "memory"
)

# What a worker process holds; filled by `_start_worker`.
_worker: dict[str, Any] = {}


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_here(batches: Iterable[list[Work]], settings: WorkSettings) -> Iterator[list[Outcome]]:
    """Verbalize in this process, one batch after the other."""
    verbalizers = settings.recipe.build()
    for batch in batches:
        yield verbalize_works(batch, verbalizers, settings)


def run_processes(
    batches: Iterable[list[Work]], settings: WorkSettings, num_workers: int, cuda_devices: Sequence[str] = ()
) -> Iterator[list[Outcome]]:
    """Verbalize in worker processes.

    Args:
        batches: read lazily, at most two per worker ahead.
        settings: sent to each worker once.
        num_workers: processes.
        cuda_devices: values of CUDA_VISIBLE_DEVICES, dealt out to the workers in turn.

    Yields:
        The outcomes of one batch, in the order in which batches are finished.

    Raises:
        ValueError: workers cannot start, or die whatever they look at.
    """
    source = iter(batches)
    num_ahead = 2 * num_workers
    while True:
        pool = _start_pool(settings, num_workers, cuda_devices)
        try:
            lost = yield from _drain(pool, source, num_ahead)
        finally:
            _stop_pool(pool)
        if not lost:
            return
        yield from _run_one_by_one(lost, settings, cuda_devices)


def _drain(
    pool: ProcessPoolExecutor, source: Iterator[list[Work]], num_ahead: int
) -> Generator[list[Outcome], None, list[Work]]:
    """Give out batches until there are no more or a worker dies; returns the images that were out then."""
    out: dict[Future[list[Outcome]], list[Work]] = {}
    lost: list[Work] = []
    while True:
        while not lost and len(out) < num_ahead and (batch := next(source, None)) is not None:
            try:
                out[pool.submit(_verbalize, batch)] = batch
            except BrokenProcessPool:
                lost += batch
        if not out:
            return lost
        for future in wait(out, return_when=FIRST_COMPLETED).done:
            batch = out.pop(future)
            try:
                outcomes = future.result()
            except BrokenProcessPool:
                lost += batch
            else:
                yield outcomes


def _run_one_by_one(
    works: Iterable[Work], settings: WorkSettings, cuda_devices: Sequence[str]
) -> Iterator[list[Outcome]]:
    """Verbalize images of which one has killed a worker, one by one, with a new worker after each death."""
    pool: ProcessPoolExecutor | None = None
    num_deaths = 0
    try:
        for work in works:
            pool = pool or _start_pool(settings, 1, cuda_devices)
            try:
                outcomes = pool.submit(_verbalize, [work]).result()
                num_deaths = 0
            except BrokenProcessPool:
                _stop_pool(pool)
                pool, outcomes = None, [Outcome(work.content_hash, None, _DEATH)]
                num_deaths += 1
                if num_deaths == _DEATHS_TO_STOP:
                    raise ValueError(
                        f"{num_deaths} worker processes in a row died, each looking at one image. Look for the "
                        "reason with --workers 0, or give the workers more memory."
                    ) from None
            yield outcomes
    finally:
        if pool is not None:
            _stop_pool(pool)


def _start_pool(settings: WorkSettings, num_workers: int, cuda_devices: Sequence[str]) -> ProcessPoolExecutor:
    """Worker processes that are ready."""
    context = multiprocessing.get_context("spawn")
    num_threads = max(1, count_cores() // num_workers)
    pool = ProcessPoolExecutor(
        num_workers, context, _start_worker, (settings, num_threads, tuple(cuda_devices), context.Value("i", 0))
    )
    try:
        pool.submit(_is_ready).result()
    except BrokenProcessPool as error:
        raise ValueError(
            "worker processes cannot start (their messages stand above). Functions and verbalizers must live in "
            "modules that another process can import; a script needs `if __name__ == '__main__':`."
        ) from error
    except BaseException:  # Ctrl-C, while they are starting
        _stop_pool(pool)
        raise
    return pool


def _stop_pool(pool: ProcessPoolExecutor) -> None:
    """End the processes at once: whatever still runs in them is not waited for."""
    workers = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        worker.terminate()


def _start_worker(settings: WorkSettings, num_threads: int, cuda_devices: tuple[str, ...], counter: Any) -> None:
    """Runs first in every worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent ends its workers
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    logging.getLogger("verbalizers").setLevel(logging.CRITICAL)  # failures are in the scenes; here they would repeat
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, str(num_threads))
    if "torch" in sys.modules:  # it came in with `load`, before the variables were set
        sys.modules["torch"].set_num_threads(num_threads)
    with counter.get_lock():
        index = counter.value
        counter.value += 1
    if cuda_devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = cuda_devices[index % len(cuda_devices)]
    _worker["settings"] = settings


def _exit_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _is_ready() -> bool:
    return "settings" in _worker


def _verbalize(works: list[Work]) -> list[Outcome]:
    """Runs in a worker. Verbalizers are built at the first batch, so that a failure to build them is told."""
    settings: WorkSettings = _worker["settings"]
    if "verbalizers" not in _worker:
        _worker["verbalizers"] = settings.recipe.build()
    return verbalize_works(works, _worker["verbalizers"], settings)
