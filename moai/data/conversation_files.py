"""Rows of conversation files with the place where each one stands: JSON, JSONL, Parquet, `datasets` folders.

A row that cannot be read does not end the reading: it is handed over as its error, named by file and line (JSON,
JSONL) or row (Parquet, `datasets`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from verbalizers.store.sources import DatasetRow as ConversationRow
from verbalizers.store.sources import (
    Source,
    choose_image_column,
    count_row_images,
    image_columns,
    is_saved_table,
    open_rows,
    read_json_rows,
    row_with_files,
)

__all__ = ["ConversationRow", "read_rows"]


def read_rows(
    path: str | Path,
    image_folder: str | Path | None = None,
    split: str | None = None,
    column: str | None = None,
) -> Iterator[ConversationRow]:
    """The rows of a file or folder, in order; no image is opened.

    Args:
        path: `.json` (a list), `.jsonl`, `.parquet`, a folder of Parquet files, or one that save_to_disk wrote.
        image_folder: Where relative image paths begin; None = beside the file.
        split: Split of a `datasets` folder that has several.
        column: Column of the images in a table; None = the only one that holds images.

    Raises:
        ValueError: It is none of these, a JSON list breaks off, or it is not clear which column holds the images.
        ImportError: A table, and the `datasets` package is not installed.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if path.is_file() and suffix in (".json", ".jsonl"):
        if column is not None:
            raise ValueError(f"expected `column` for tables only, got {column!r} for {str(path)!r}. Leave it out.")
        folder = path.parent if image_folder is None else Path(image_folder)
        return read_json_rows(path, folder)
    if path.is_dir() and not _is_table(path):
        hint = "Name a .json or .jsonl file inside it, or write it with datasets' save_to_disk."
        raise ValueError(f"expected conversations, got the folder {str(path)!r} without a table of them. {hint}")
    if path.is_dir() or (path.is_file() and suffix == ".parquet"):
        return _read_table(path, split, column, path.parent if image_folder is None else Path(image_folder))
    got = "which does not exist" if not path.exists() else f"of type {suffix or 'unknown'!r}"
    raise ValueError(f"expected a .json, .jsonl or .parquet file or a `datasets` folder, got {str(path)!r}, {got}.")


def _is_table(folder: Path) -> bool:
    return is_saved_table(folder) or any(folder.rglob("*.parquet"))


def _read_table(path: Path, split: str | None, column: str | None, folder: Path) -> Iterator[ConversationRow]:
    """Rows of a `datasets` table; its images are read from it later, row by row."""
    splits = open_rows(str(path))
    if split is None and len(splits) == 1:
        split = next(iter(splits))
    if split not in splits:
        raise ValueError(f"expected `split` to be one of {sorted(map(str, splits))} in {str(path)!r}, got {split!r}.")
    rows = splits[split]
    column = choose_image_column(rows, column, str(path))
    counts = count_row_images(rows, column) if column else []
    text = rows.remove_columns(list(image_columns(rows)))
    for number in range(len(text)):
        place = f"{path.name}[{number}]" if split is None else f"{path.name}[{split}/{number}]"
        value = text[number]
        if column is None:  # paths of files
            yield row_with_files(place, value, path.name, folder)
            continue
        row_id = str(value.get("id", number))
        sources = [
            Source(path.name, row_id, "", str(path), split, column, number, item) for item in range(counts[number])
        ]
        yield ConversationRow(place, value, tuple(sources))
