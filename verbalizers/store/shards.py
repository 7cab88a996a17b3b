"""The Parquet shards of the cache: their columns, how they are found, read and written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verbalizers.core.durable_files import atomic_file

__all__ = ["import_pyarrow", "read_table", "scenes_schema", "shard_paths", "sources_schema", "write_table"]

#: Rows that are read together: a training loop reads at random, and reads this many to get one.
ROW_GROUP_ROWS = {"scenes": 16, "sources": 64 * 1024}


def import_pyarrow() -> tuple[Any, Any]:
    """`pyarrow` and `pyarrow.parquet`.

    Raises:
        ImportError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        message = f'cached verbalizations need pyarrow: pip install "moai-vlm[train]" ({error})'
        raise ImportError(message) from error
    return pyarrow, pyarrow.parquet


def shard_paths(folder: Path, table: str) -> list[Path]:
    """The shards of one table (`scenes` or `sources`), oldest first."""
    return sorted(folder.glob(f"{table}-[0-9]*.parquet"))


def scenes_schema() -> Any:
    """Arrow schema of `scenes-*.parquet`: one row per distinct image."""
    pa, _ = import_pyarrow()
    columns = {"content_hash": pa.string(), "id": pa.string(), "path": pa.string(), "fingerprint": pa.string()}
    columns |= {"height": pa.int32(), "width": pa.int32(), "scene": pa.string(), "text": pa.string()}
    return pa.schema({**columns, "failed_kinds": pa.list_(pa.string()), "panoptic_png": pa.binary()})


def sources_schema() -> Any:
    """Arrow schema of `sources-*.parquet`: one row per occurrence of an image in a data set."""
    pa, _ = import_pyarrow()
    return pa.schema({name: pa.string() for name in ("dataset", "id", "path", "content_hash")})


def read_table(path: Path, columns: Sequence[str] | None = None) -> Any:
    """A shard, or some of its columns, as a `pyarrow.Table`.

    Raises:
        ValueError: it is damaged.
    """
    pa, pq = import_pyarrow()
    try:
        return pq.ParquetFile(path).read(columns)
    except (pa.ArrowInvalid, OSError) as error:
        message = f"expected a Parquet shard in {str(path)!r}, got something else ({error}). Delete it and run again."
        raise ValueError(message) from error


def write_table(path: Path, table: Any) -> None:
    """Write a shard atomically; its rows are on disk when this returns."""
    _, pq = import_pyarrow()
    with atomic_file(path) as temporary:
        rows = ROW_GROUP_ROWS[path.name.split("-")[0]]
        pq.write_table(table, temporary, compression="zstd", row_group_size=rows)
