"""Data sets of pictures to verbalize: a folder, JSONL, LLaVA JSON, or a folder of the `datasets` library.

A source is where one picture lies: small, comparable, and readable in any process that sees the same disk.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = ["PICTURE_SUFFIXES", "BadSource", "Source", "is_dataset", "read_sources"]

#: Files of a folder that count as pictures, by suffix.
PICTURE_SUFFIXES = frozenset(
    ".avif .bmp .gif .ico .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
#: Largest picture file that is read.
MAX_FILE_BYTES = 256 * 2**20
_DATASETS_FILES = ("state.json", "dataset_dict.json")


@dataclass(frozen=True, slots=True)
class Source:
    """One picture of a data set.

    Attributes:
        dataset: name of the data set, to tell two of them apart in one cache.
        id: what the data set calls the picture.
        path: its path as the data set writes it; "" where it has none.
        location: the file to read, or the folder of a `datasets` data set.
        split: split inside that folder; None = it has none.
        column: column of the pictures inside that folder; "" = `location` is a picture file.
        row: row inside the split.
    """

    dataset: str
    id: str
    path: str
    location: str
    split: str | None = None
    column: str = ""
    row: int = 0

    def read(self, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        """The encoded picture.

        Raises:
            ValueError: it is missing, no regular file, or too large.
        """
        if not self.column:
            return _read_file(self.location, max_bytes)
        value = _open_column(self.location, self.split, self.column)[self.row][self.column]
        if value is None:
            raise ValueError(f"expected a picture in row {self.row}, column {self.column!r}, got nothing.")
        if value.get("bytes") is None:
            return _read_file(value["path"], max_bytes)
        if len(value["bytes"]) > max_bytes:
            raise ValueError(f"expected at most {max_bytes} bytes, got {len(value['bytes'])}. Shrink the picture.")
        return value["bytes"]

    def to_dict(self) -> dict[str, Any]:
        """The fields, JSON-able; `Source(**fields)` gives it back."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class BadSource:
    """A line or entry of a data set that names no picture.

    Attributes:
        dataset: name of the data set.
        path: where the entry stands, e.g. `train.jsonl:7`.
        reason: what is wrong with it.
    """

    dataset: str
    path: str
    reason: str

    @property
    def id(self) -> str:
        """As `Source.id`: a bad entry is called by its place."""
        return self.path


def _read_file(path: str, max_bytes: int) -> bytes:
    """A regular file's content. A pipe would block for ever, a device never end: both are refused."""
    if "://" in path[:12]:
        raise ValueError(f"expected the path of a picture, got the address {path[:120]!r}. Download it first.")
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"expected a picture file, got {path!r}, which is no regular file.")
        if status.st_size > max_bytes:
            raise ValueError(f"expected at most {max_bytes} bytes, got {status.st_size}. Shrink the picture.")
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"expected a readable picture file, got {path!r} ({error.strerror}).") from error


def is_dataset(path: str | Path) -> bool:
    """Whether a path names a data set (a folder, `.json` or `.jsonl`) rather than a picture."""
    return Path(path).is_dir() or Path(path).suffix.lower() in (".json", ".jsonl")


def read_sources(
    dataset: str | Path, image_folder: str | Path | None = None, column: str | None = None
) -> list[Source | BadSource]:
    """List the pictures of a data set, in its order; no picture is opened.

    Args:
        dataset: a folder of pictures (with its sub-folders, by name; hidden files are left out), a picture, a `.jsonl`
            file of `{"image": path, "id": optional}`, a `.json` file of LLaVA's form (a list of such objects; those
            without a picture are left out), or a folder that `datasets`' save_to_disk wrote.
        image_folder: where the paths of a `.json` or `.jsonl` begin; None = the file's folder.
        column: column of the pictures in a `datasets` folder; None = the only one of them that holds pictures.

    Returns:
        A source per picture, and a `BadSource` per entry that names none.

    Raises:
        ValueError: it is none of these.
        ImportError: a `datasets` folder, and that package is not installed.
    """
    path = Path(dataset)
    name = path.resolve().name
    if path.is_dir():
        if any((path / file).is_file() for file in _DATASETS_FILES):
            return list(_read_datasets_folder(path, name, column))
        return list(_read_folder(path, name))
    if not path.is_file():
        raise ValueError(
            f"expected a folder of pictures, a picture, a .jsonl or a .json file, got {str(dataset)!r}, "
            "which does not exist. Check the path."
        )
    start = path.parent if image_folder is None else Path(image_folder)
    if path.suffix.lower() == ".jsonl":
        return list(_read_entries(_parse_lines(path), name, start))
    if path.suffix.lower() == ".json":
        return list(_read_entries(_parse_list(path), name, start))
    return [Source(_in_unicode(path.resolve().parent.name), _in_unicode(name), _in_unicode(name), str(path))]


def _in_unicode(name: str) -> str:
    """A file name as valid Unicode: bytes that are no UTF-8 are written out as escapes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _read_folder(folder: Path, name: str) -> Iterator[Source]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(entry for entry in folders if not entry.startswith("."))
        for file in sorted(files):
            if file.startswith(".") or Path(file).suffix.lower() not in PICTURE_SUFFIXES:
                continue
            location = Path(parent, file)
            path = _in_unicode(location.relative_to(folder).as_posix())
            yield Source(_in_unicode(name), path, path, str(location))


def _parse_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield f"{path.name}:{number}", json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                yield f"{path.name}:{number}", error


def _parse_list(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"expected a JSON list of objects with `image` in {str(path)!r}, got: {error}.") from error
    if not isinstance(entries, list):
        raise ValueError(
            f"expected a JSON list of objects with `image` in {str(path)!r}, got a {type(entries).__name__}. "
            "One object per line belongs in a .jsonl file."
        )
    for index, entry in enumerate(entries):
        # LLaVA's mixtures hold conversations without a picture: there is nothing to look at in them.
        if not isinstance(entry, Mapping) or entry.get("image") is not None:
            yield f"{path.name}[{index}]", entry


def _read_entries(entries: Iterable[tuple[str, Any]], dataset: str, folder: Path) -> Iterator[Source | BadSource]:
    dataset = _in_unicode(dataset)
    for place, entry in entries:
        place = _in_unicode(place)
        if isinstance(entry, Exception):
            yield BadSource(dataset, place, f"expected a JSON object, got something else ({entry})")
            continue
        image = entry.get("image") if isinstance(entry, Mapping) else None
        images = image if isinstance(image, list) else [image]
        if not images or not all(isinstance(path, str) and path.strip() and "\0" not in path for path in images):
            yield BadSource(dataset, place, f"expected an object whose `image` is a path, got {str(entry)[:120]}")
            continue
        row_id = entry.get("id")
        for path in images:
            name = path if row_id is None else str(row_id)
            location = path if "://" in path[:12] else str(folder / path)
            yield Source(dataset, _in_unicode(name), _in_unicode(path), location)


def _load_datasets_folder(folder: str) -> Mapping[str | None, Any]:
    """Split -> data set; a folder without splits has the one split None."""
    try:
        from datasets import DatasetDict, load_from_disk
    except ImportError as error:
        message = f'{folder!r} needs the `datasets` package: pip install "moai-vlm[train]" ({error})'
        raise ImportError(message) from error
    try:
        loaded = load_from_disk(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"expected a folder that save_to_disk wrote, got {folder!r}: {error}.") from error
    return loaded if isinstance(loaded, DatasetDict) else {None: loaded}


@lru_cache(maxsize=8)
def _open_column(folder: str, split: str | None, column: str) -> Any:
    """One column of encoded pictures; kept open, because every row of it is read one after the other."""
    from datasets import Image

    return _load_datasets_folder(folder)[split].select_columns([column]).cast_column(column, Image(decode=False))


def _read_datasets_folder(folder: Path, name: str, column: str | None) -> Iterator[Source]:
    splits = _load_datasets_folder(str(folder))
    from datasets import Image

    for split, rows in splits.items():
        pictures = [key for key, feature in rows.features.items() if isinstance(feature, Image)]
        chosen = column or (pictures[0] if len(pictures) == 1 else None)
        if chosen not in pictures:
            raise ValueError(
                f"expected one column of pictures in {str(folder)!r}, got {pictures or 'none'}"
                f"{f' but not {column!r}' if column else ''}. Name one with --column, or cast it to datasets.Image()."
            )
        ids = rows["id"] if "id" in rows.features else None
        for row in range(len(rows)):
            place = f"{row}" if split is None else f"{split}/{row}"
            row_id = place if ids is None else str(ids[row])
            yield Source(_in_unicode(name), row_id, "", str(folder), split, chosen, row)
