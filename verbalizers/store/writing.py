"""Writer of the cache: a kill at any instant loses nothing that was finished and doubles nothing.

What workers find goes to `journal.jsonl` first, one whole line per image, on disk before the next batch. From time
to time the journal becomes a Parquet shard: written under another name, forced to disk, renamed; then the journal is
emptied. A run that is killed in between finds its rows in both places and drops those of the journal. One writer per
folder: a lock that the kernel gives back when the process ends, however it ends.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from verbalizers.core.durable_files import append_to_file, atomic_file, lock_folder, naming_file, read_lines, write_json
from verbalizers.store.recipe import MANIFEST_FILE, Recipe, read_manifest
from verbalizers.store.shards import (
    import_pyarrow,
    read_table,
    scenes_schema,
    shard_paths,
    sources_schema,
    write_table,
)
from verbalizers.store.sources import BadSource, Source

__all__ = ["ERRORS_FILE", "JOURNAL_FILE", "CacheWriter"]

JOURNAL_FILE, ERRORS_FILE = "journal.jsonl", "errors.jsonl"
_MAX_JOURNAL_BYTES = 64 * 2**20


class CacheWriter:
    """The one writer of a recipe's folder. Use as a context manager.

    Args:
        out: the cache; the recipe's fingerprint names the folder inside.
        recipe: what the verbalizations are made with.
        shard_rows: images per Parquet shard.
        is_retrying_failures: forget the images on which a verbalizer failed, so that they are verbalized again.

    Attributes:
        folder: the recipe's folder.
        known_hashes: content hashes that are in the cache.

    Raises:
        ValueError: another process writes there, or the folder holds something else.
        ImportError: pyarrow is not installed.
    """

    def __init__(
        self, out: str | Path, recipe: Recipe, shard_rows: int = 512, is_retrying_failures: bool = False
    ) -> None:
        if shard_rows < 1:
            raise ValueError(f"`shard_rows` must be at least 1, got {shard_rows}.")
        import_pyarrow()
        self.fingerprint, self.shard_rows = recipe.fingerprint, shard_rows
        self.folder = Path(out) / self.fingerprint
        if Path(out).is_file():
            raise ValueError(f"expected a folder for --out, got the file {str(out)!r}. Name another.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock_file = lock_folder(self.folder)
        self._write_manifest(recipe)
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink()
        if is_retrying_failures:
            self._drop_failures()
        self._scenes: list[dict[str, Any]] = []
        self._sources: list[dict[str, Any]] = []
        self.known_hashes = set(self._read_column("scenes", "content_hash"))
        self._hash_of_source: dict[bytes, bytes] = {}
        for path in shard_paths(self.folder, "sources"):
            for row in read_table(path).to_pylist():
                self._remember(row)
        self._journal = self._open_journal(is_retrying_failures)
        self._errors = {_error_key(row): row for _, row in read_lines(self.folder / ERRORS_FILE)}
        self._rewrite_errors()

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Turn what is in the journal into a shard and let other writers in."""
        if self._lock_file.closed:
            return
        try:
            with naming_file(self.folder):
                self.flush()
            self._rewrite_errors()
        finally:
            self._journal.close()
            self._lock_file.close()

    # ------------------------------------------------------------------ adding

    def add_found(self, found: Iterable[tuple[str, list[Source]]]) -> None:
        """Store what was found in some images; it is on disk when this returns.

        Args:
            found: per image a worker's JSON line (`rows.encode_found`) and where the image occurs.
        """
        lines = []
        for text, sources in found:
            row = json.loads(text)
            row |= {"id": sources[0].id, "path": sources[0].path}
            if row["content_hash"] in self.known_hashes:
                raise AssertionError(f"{row['content_hash']} was verbalized twice")
            self._scenes.append(row)
            self.known_hashes.add(row["content_hash"])
            lines.append(json.dumps({"scene": row}))
            lines += self._new_source_lines(sources, row["content_hash"])
        self._append(lines)

    def add_sources(self, sources: Iterable[tuple[Source, str]]) -> None:
        """Store where known images occur; occurrences that are stored already are left out.

        Args:
            sources: each with its image's content hash.
        """
        self._append([line for source, key in sources for line in self._new_source_lines([source], key)])

    def add_errors(self, errors: Iterable[tuple[Source | BadSource, str]]) -> None:
        """Report images that could not be read; one that is reported already with the same reason is left out."""
        lines = []
        for source, reason in errors:
            row = {"path": source.path or source.id, "reason": reason, "id": source.id, "dataset": source.dataset}
            if self._errors.get(_error_key(row)) != row:
                self._errors[_error_key(row)] = row
                lines.append(json.dumps(row) + "\n")
        if lines:
            append_to_file(self.folder / ERRORS_FILE, "".join(lines).encode())

    def _new_source_lines(self, sources: Iterable[Source], content_hash: str) -> list[str]:
        lines = []
        for source in sources:
            row = {"dataset": source.dataset, "id": source.id, "path": source.path, "content_hash": content_hash}
            self._errors.pop(_error_key(row), None)  # an image that has been mended
            if self._remember(row):
                self._sources.append(row)
                lines.append(json.dumps({"source": row}))
        return lines

    def _remember(self, row: Mapping[str, Any]) -> bool:
        """Note where an image occurs; whether that is news."""
        # 16 bytes instead of three strings: a million images are 0.2 GB less.
        key = hashlib.blake2b(json.dumps(_source_key(row)).encode(), digest_size=16).digest()
        value = bytes.fromhex(row["content_hash"])
        is_news = self._hash_of_source.get(key) != value
        self._hash_of_source[key] = value
        return is_news

    def _append(self, lines: list[str]) -> None:
        if lines:
            with naming_file(self.folder / JOURNAL_FILE):
                self._journal.write("".join(f"{line}\n" for line in lines).encode())
                self._journal.flush()
                os.fsync(self._journal.fileno())
        is_full = len(self._scenes) >= self.shard_rows or len(self._sources) >= 64 * self.shard_rows
        if is_full or self._journal.tell() > _MAX_JOURNAL_BYTES:
            self.flush()

    # ------------------------------------------------------------------ shards

    def flush(self) -> None:
        """Turn the journal into shards."""
        numbers = [
            int(p.stem.split("-")[1]) for table in ("scenes", "sources") for p in shard_paths(self.folder, table)
        ]
        name = f"{max(numbers, default=-1) + 1:06d}.parquet"
        if self._scenes:
            rows = [{**row, "fingerprint": self.fingerprint} for row in self._scenes]
            for row in rows:
                packed = row["panoptic_png"]
                row["panoptic_png"] = None if packed is None else base64.b64decode(packed)
            self._write_shard(f"scenes-{name}", rows, scenes_schema())
        if self._sources:
            self._write_shard(f"sources-{name}", self._sources, sources_schema())
        # Only now: until here a kill leaves the rows in the journal.
        self._journal.seek(0)
        self._journal.truncate()
        os.fsync(self._journal.fileno())
        self._scenes, self._sources = [], []

    def _write_shard(self, name: str, rows: list[dict[str, Any]], schema: Any) -> None:
        pa, _ = import_pyarrow()
        write_table(self.folder / name, pa.Table.from_pylist(rows, schema=schema))

    def _drop_failures(self) -> None:
        """Rewrite the shards without images on which a verbalizer failed."""
        pa, _ = import_pyarrow()
        for path in shard_paths(self.folder, "scenes"):
            table = read_table(path)
            is_kept = [not kinds for kinds in table.column("failed_kinds").to_pylist()]
            if not all(is_kept):
                write_table(path, table.filter(pa.array(is_kept, pa.bool_())))

    def _read_column(self, table: str, column: str) -> Iterator[Any]:
        for path in shard_paths(self.folder, table):
            yield from read_table(path, [column]).column(column).to_pylist()

    # ------------------------------------------------------------------ opening

    def _open_journal(self, is_retrying_failures: bool) -> BinaryIO:
        """Take over what a killed run left: rows that are in no shard yet."""
        path = self.folder / JOURNAL_FILE
        num_whole_bytes, scenes = 0, {}
        for num_whole_bytes, line in read_lines(path):  # noqa: B007 - its last value is where the torn line begins
            if "scene" in line:
                scenes[line["scene"]["content_hash"]] = line["scene"]  # an image verbalized again stands further down
            elif self._remember(line["source"]):
                self._sources.append(line["source"])
        for content_hash, row in scenes.items():
            if content_hash not in self.known_hashes and not (is_retrying_failures and row["failed_kinds"]):
                self.known_hashes.add(content_hash)
                self._scenes.append(row)
        file = path.open("r+b" if path.exists() else "w+b")
        file.truncate(num_whole_bytes)
        file.seek(num_whole_bytes)
        return file

    def _write_manifest(self, recipe: Recipe) -> None:
        if (self.folder / MANIFEST_FILE).exists():
            found = read_manifest(self.folder)["fingerprint"]
            if found != self.fingerprint:
                raise ValueError(
                    f"expected verbalizations of {self.fingerprint} in {self.folder}, got {found}. "
                    "Verbalize into another folder."
                )
            return
        write_json(self.folder / MANIFEST_FILE, recipe.to_manifest(self.folder))

    def _rewrite_errors(self) -> None:
        path = self.folder / ERRORS_FILE
        if self._errors or path.exists():
            with atomic_file(path) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in self._errors.values()), "utf-8")


def _source_key(row: Mapping[str, Any]) -> list[str]:
    return [row["dataset"], row["id"], row["path"]]


def _error_key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["dataset"], row["id"], row["path"] or row["id"]
