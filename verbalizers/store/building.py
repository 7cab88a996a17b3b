"""Verbalize a data set into a cache: every distinct image once, in several processes, resumable at any instant.

The parent reads and hashes the images, hands unknown ones out, and is the only one that writes. Workers build their
own verbalizers (no live model crosses a process boundary) and send lines of JSON back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from verbalizers.core.verbalizer import Verbalizer
from verbalizers.store.local_engine import run_here, run_processes
from verbalizers.store.recipe import Recipe
from verbalizers.store.rows import hash_content
from verbalizers.store.sources import BadSource, Source
from verbalizers.store.work import LoadImage, Outcome, Work, WorkSettings
from verbalizers.store.writing import CacheWriter

__all__ = ["ENGINES", "BuildReport", "build_cache"]

ENGINES = ("local", "ray")
#: A kind that fails on so many images without one success is broken, not unlucky.
_FAILURES_TO_STOP = 16
_MAX_BATCH_BYTES = 32 * 2**20


@dataclass
class BuildReport:
    """Progress of a run.

    Attributes:
        folder: where the shards are.
        num_sources: entries of the data set.
        num_done: entries that are dealt with.
        num_verbalized: images that were verbalized in this run.
        num_known: entries whose image was in the cache before this run.
        num_repeated: entries whose image occurred earlier in this run.
        num_errors: entries that could not be read; see `errors.jsonl`.
        failures: kind -> images of this run on which its verbalizer failed.
    """

    folder: Path
    num_sources: int
    num_done: int = 0
    num_verbalized: int = 0
    num_known: int = 0
    num_repeated: int = 0
    num_errors: int = 0
    failures: Counter[str] = field(default_factory=Counter)


def build_cache(
    sources: Sequence[Source | BadSource],
    verbalizers: Sequence[Verbalizer] | Recipe,
    out: str | Path,
    load: LoadImage,
    *,
    engine: str = "local",
    num_workers: int = 1,
    batch_size: int = 8,
    timeout_s: float | None = None,
    shard_rows: int = 512,
    cuda_devices: Sequence[str] = (),
    num_gpus: float = 0,
    is_retrying_failures: bool = False,
    on_progress: Callable[[BuildReport], None] | None = None,
) -> BuildReport:
    """Verbalize what is not in the cache yet.

    Args:
        sources: the images; see `sources.read_sources`.
        verbalizers: ready ones, or a recipe of them and of what is worth saying.
        out: the cache; a sub-folder named by the recipe's fingerprint is written.
        load: encoded image -> upright RGB PIL image, with a bound on its size; an importable function (or a
            `functools.partial` of one), because worker processes call it. What it raises is reported as the reason.
        engine: "local" (processes of this machine) or "ray" (Ray Data on a cluster whose machines see the same files).
        num_workers: processes; 0 = look in this process, one batch after the other.
        batch_size: images that a worker takes at once.
        timeout_s: seconds per image that a verbalizer has; None = no limit.
        shard_rows: images per Parquet shard.
        cuda_devices: values of CUDA_VISIBLE_DEVICES to spread local workers over; empty = leave it alone.
        num_gpus: GPUs, or share of one, that Ray sets aside for each of its workers.
        is_retrying_failures: verbalize images again on which a verbalizer failed in an earlier run.
        on_progress: called with the same growing report from time to time.

    Returns:
        The final report.

    Raises:
        ValueError: unusable settings, another writer in the folder, or a verbalizer that fails on every image.
        ImportError: pyarrow, or ray for that engine, is not installed.
    """
    if engine not in ENGINES:
        raise ValueError(f"`engine` must be one of {ENGINES}, got {engine!r}.")
    if num_workers < 0 or batch_size < 1:
        raise ValueError(f"expected num_workers >= 0 and batch_size >= 1, got {num_workers} and {batch_size}.")
    recipe = verbalizers if isinstance(verbalizers, Recipe) else Recipe.from_verbalizers(verbalizers)
    settings = WorkSettings(recipe, load, timeout_s)
    with CacheWriter(out, recipe, shard_rows, is_retrying_failures) as writer:
        ledger = _Ledger(writer, BuildReport(writer.folder, len(sources)), on_progress or (lambda report: None))
        if engine == "ray":
            from verbalizers.store.ray_engine import hash_sources, run_ray

            works = _plan(hash_sources(sources), ledger)
            outcomes = run_ray(works, settings, max(num_workers, 1), batch_size, num_gpus)
        elif num_workers:
            batches = _in_batches(_read_unknown(sources, ledger), batch_size)
            outcomes = run_processes(batches, settings, num_workers, cuda_devices)
        else:
            outcomes = run_here(_in_batches(_read_unknown(sources, ledger), batch_size), settings)
        with closing(outcomes):  # ends the workers at once when something fails here, or at Ctrl-C
            for group in outcomes:
                ledger.settle(group)
        ledger.store_sources()
        ledger.report_progress()
    return ledger.report


class _Ledger:
    """State of a run: which images are known, in work, or unreadable, and where else each of them occurs."""

    def __init__(self, writer: CacheWriter, report: BuildReport, on_progress: Callable[[BuildReport], None]) -> None:
        self.writer, self.report, self._on_progress = writer, report, on_progress
        self._pending: dict[str, list[Source]] = {}
        self._unreadable: dict[str, str] = {}
        self._known_sources: list[tuple[Source, str]] = []
        self._verbalized: set[str] = set()
        self._successes: Counter[str] = Counter()

    def refuse(self, source: Source | BadSource, reason: str) -> None:
        """An entry without an image."""
        self.writer.add_errors([(source, reason)])
        self._count(num_errors=1)

    def is_new(self, source: Source, content_hash: str) -> bool:
        """Whether this content is neither known nor in work; from now on it is in work."""
        if content_hash in self.writer.known_hashes:
            self._known_sources.append((source, content_hash))
            if len(self._known_sources) >= 1024:
                self.store_sources()
            is_repeated = content_hash in self._verbalized
            self._count(num_repeated=int(is_repeated), num_known=int(not is_repeated))
        elif content_hash in self._unreadable:
            self.refuse(source, self._unreadable[content_hash])
        elif content_hash in self._pending:
            self._pending[content_hash].append(source)
        else:
            self._pending[content_hash] = [source]
            return True
        return False

    def settle(self, outcomes: Iterable[Outcome]) -> None:
        """Store what came back about some images."""
        found = []
        for outcome in outcomes:
            sources = self._pending.pop(outcome.content_hash)
            if outcome.found is None:
                self._unreadable[outcome.content_hash] = outcome.error
                self.writer.add_errors([(source, outcome.error) for source in sources])
                self._count(num_errors=len(sources))
                continue
            found.append((outcome.found, sources))
            self._verbalized.add(outcome.content_hash)
            self._successes.update(outcome.seen_kinds)
            self.report.failures.update(dict.fromkeys(outcome.failures, 1))
            self._check_failures(outcome)
            self._count(num_verbalized=1, num_repeated=len(sources) - 1)
        self.writer.add_found(found)

    def store_sources(self) -> None:
        """Store where known images occur."""
        self.writer.add_sources(self._known_sources)
        self._known_sources = []

    def report_progress(self) -> None:
        """Report the progress."""
        self._on_progress(self.report)

    def _count(self, **counts: int) -> None:
        for name, count in counts.items():
            setattr(self.report, name, getattr(self.report, name) + count)
        self.report.num_done += sum(counts.values())
        self._on_progress(self.report)

    def _check_failures(self, outcome: Outcome) -> None:
        for kind, reason in outcome.failures.items():
            if self._successes[kind] == 0 and self.report.failures[kind] >= _FAILURES_TO_STOP:
                raise ValueError(
                    f"the verbalizer {kind!r} failed on each of the first {self.report.failures[kind]} images: "
                    f"{reason}. Mend it and run again with failures retried, or leave it out."
                )


def _read_unknown(sources: Sequence[Source | BadSource], ledger: _Ledger) -> Iterator[Work]:
    """Read and hash every image once, however often it occurs, and pass on those to verbalize."""
    counts = Counter(source.location for source in sources if isinstance(source, Source) and not source.column)
    repeated = {location for location, count in counts.items() if count > 1}
    del counts
    hashes: dict[str, str] = {}  # of files that occur several times
    for source in sources:
        if isinstance(source, BadSource):
            ledger.refuse(source, source.reason)
            continue
        is_repeated = not source.column and source.location in repeated
        data, content_hash = None, hashes.get(source.location) if is_repeated else None
        if content_hash is None:
            try:
                data = source.read()
            except ValueError as error:
                ledger.refuse(source, str(error))
                continue
            content_hash = hash_content(data)
            if is_repeated:
                hashes[source.location] = content_hash
        if ledger.is_new(source, content_hash):
            yield Work(content_hash, source, data)


def _plan(hashed: Iterable[tuple[Source | BadSource, str | None, str]], ledger: _Ledger) -> list[Work]:
    """The images to verbalize, from hashes that were taken elsewhere."""
    works = []
    for source, content_hash, error in hashed:
        if content_hash is None:
            ledger.refuse(source, error)
        elif ledger.is_new(source, content_hash):
            works.append(Work(content_hash, source, None))
    return works


def _in_batches(works: Iterable[Work], batch_size: int) -> Iterator[list[Work]]:
    """Groups of at most this many images and not many more bytes than the bound."""
    batch: list[Work] = []
    num_bytes = 0
    for work in works:
        batch.append(work)
        num_bytes += len(work.data)
        if len(batch) == batch_size or num_bytes > _MAX_BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch
