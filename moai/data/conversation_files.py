"""Rows of conversation files with the place where each one stands: JSON, JSONL, Parquet, `datasets` folders.

A row that cannot be read does not end the reading: it is handed over as its error, named by file and line (JSON,
JSONL) or row (Parquet, `datasets`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verbalizers.cache_sources import Source, count_pictures, open_rows, picture_columns

__all__ = ["ConversationRow", "read_rows"]

_DATASETS_FILES = ("state.json", "dataset_dict.json")


@dataclass(frozen=True)
class ConversationRow:
    """One row as the file holds it.

    Attributes:
        place: `train.jsonl:7`, or `data[train/7]` for row 7 (from 0) of a table.
        value: The parsed row; None where it cannot be read.
        pictures: Its pictures, not yet opened.
        problem: Why it cannot be read; None = it can.
    """

    place: str
    value: Any = None
    pictures: tuple[Source, ...] = ()
    problem: str | None = None


def read_rows(
    path: str | Path, image_folder: str | Path | None = None, split: str | None = None
) -> Iterator[ConversationRow]:
    """The rows of a file or folder, in order; no picture is opened.

    Args:
        path: `.json` (a list), `.jsonl`, `.parquet`, a folder of Parquet files, or one that save_to_disk wrote.
        image_folder: Where relative picture paths begin; None = beside the file.
        split: Split of a `datasets` folder that has several.

    Raises:
        ValueError: It is none of these, or a JSON list breaks off.
        ImportError: A table, and the `datasets` package is not installed.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if path.is_file() and suffix in (".json", ".jsonl"):
        folder = path.parent if image_folder is None else Path(image_folder)
        entries = _parse_lines(path) if suffix == ".jsonl" else _parse_list(path)
        return (_with_files(f"{path.name}:{line}", entry, path.name, folder) for line, entry in entries)
    if path.is_dir() and not _is_table(path):
        hint = "Name a .json or .jsonl file inside it, or write it with datasets' save_to_disk."
        raise ValueError(f"expected conversations, got the folder {str(path)!r} without a table of them. {hint}")
    if path.is_dir() or (path.is_file() and suffix == ".parquet"):
        return _read_table(path, split, path.parent if image_folder is None else Path(image_folder))
    got = "which does not exist" if not path.exists() else f"of type {suffix or 'unknown'!r}"
    raise ValueError(f"expected a .json, .jsonl or .parquet file or a `datasets` folder, got {str(path)!r}, {got}.")


def _is_table(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _DATASETS_FILES) or any(folder.rglob("*.parquet"))


def _parse_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers and parsed lines; an exception stands for a line that is no JSON."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                yield number, error


def _parse_list(path: Path) -> Iterator[tuple[int, Any]]:
    """Elements of a JSON list, each with the line on which it begins; the list is never held in parsed form."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ValueError(f"expected a JSON file in UTF-8, got {str(path)!r} ({error}).") from error
    decoder, position, counted, line = json.JSONDecoder(), _skip(text, 0), 0, 1
    if text[position : position + 1] != "[":
        raise ValueError(f"expected a JSON list in {str(path)!r}. One object per line belongs in a .jsonl file.")
    position = _skip(text, position + 1)
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            entry, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            # Where one element ends is unknown now, so no later one can be trusted.
            raise ValueError(f"{path.name}:{line}: expected a JSON object, got something else ({error}).") from error
        yield line, entry
        position = _skip(text, position)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
        elif text[position : position + 1] != "]":
            line += text.count("\n", counted, position)
            raise ValueError(f"{path.name}:{line}: expected ',' or ']' behind an element of the list.")


def _skip(text: str, position: int) -> int:
    """The next position that holds no white space."""
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _with_files(place: str, entry: Any, dataset: str, folder: Path) -> ConversationRow:
    """A row whose pictures are files: `image` (LLaVA) or `images`, a path or a list of them."""
    if isinstance(entry, Exception):
        return ConversationRow(place, problem=f"expected a JSON object, got something else ({entry})")
    if not isinstance(entry, Mapping):
        return ConversationRow(place, problem=f"expected a JSON object, got a {type(entry).__name__}")
    value = entry.get("image") if entry.get("image") is not None else entry.get("images")
    paths = [] if value is None else value if isinstance(value, list) else [value]
    row_id = str(entry.get("id", place))
    pictures = []
    for item in paths:
        if not isinstance(item, str) or not item.strip() or "\0" in item:
            return ConversationRow(place, problem=f"expected the path of a picture, got {str(item)[:80]!r}")
        location = item if "://" in item[:12] else str(folder / item)
        pictures.append(Source(dataset, row_id, item, location))
    return ConversationRow(place, entry, tuple(pictures))


def _read_table(path: Path, split: str | None, folder: Path) -> Iterator[ConversationRow]:
    """Rows of a `datasets` table; its pictures are read from it later, row by row."""
    splits = open_rows(str(path))
    if split is None and len(splits) == 1:
        split = next(iter(splits))
    if split not in splits:
        raise ValueError(f"expected `split` to be one of {sorted(map(str, splits))} in {str(path)!r}, got {split!r}.")
    rows = splits[split]
    held = picture_columns(rows)
    column = next((name for name in ("image", "images") if name in held), None)
    counts = count_pictures(rows, column) if column else []
    text = rows.remove_columns(list(held))
    for number in range(len(text)):
        place = f"{path.name}[{number}]" if split is None else f"{path.name}[{split}/{number}]"
        value = text[number]
        if column is None:  # paths of files
            yield _with_files(place, value, path.name, folder)
            continue
        row_id = str(value.get("id", number))
        sources = [
            Source(path.name, row_id, "", str(path), split, column, number, item) for item in range(counts[number])
        ]
        yield ConversationRow(place, value, tuple(sources))
