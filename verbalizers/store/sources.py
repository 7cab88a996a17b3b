"""Data sets of images to verbalize: a folder, JSONL, LLaVA JSON, or a folder of the `datasets` library.

A source is where one image lies: small, comparable, and readable in any process that sees the same disk.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from verbalizers.core.valid_text import STRICT_JSON, make_valid

__all__ = [
    "IMAGE_SUFFIXES",
    "BadSource",
    "DatasetRow",
    "Source",
    "choose_image_column",
    "count_row_images",
    "is_dataset",
    "is_saved_table",
    "open_rows",
    "image_columns",
    "read_json_rows",
    "row_with_files",
    "read_sources",
]

#: Files of a folder that count as images, by suffix.
IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .gif .heic .heif .hif .ico .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
#: Largest image file that is read.
MAX_FILE_BYTES = 256 * 2**20
# No file system takes a longer one: it is an image in base64.
_MAX_PATH_LENGTH = 4096
# Names of columns that hold an image or its path, besides `image` and `images`.
_IMAGE_KEY = re.compile(
    r"(images?|imgs?|pictures?|pics?|photos?|jpe?gs?|pngs?|webps?)([_-]?(paths?|files?|(file_?)?names?|ur[li]s?|b(ase_?)?64|bytes|data|contents?|\d+))?"
)
_DATASETS_FILES = ("state.json", "dataset_dict.json")


@dataclass(frozen=True, slots=True)
class Source:
    """One image of a data set.

    Attributes:
        dataset: name of the data set, to tell two of them apart in one cache.
        id: what the data set calls the image.
        path: its path as the data set writes it; "" where it has none.
        location: the file to read, or the folder of a `datasets` data set.
        split: split inside that folder; None = it has none.
        column: column of the images inside that folder; "" = `location` is an image file.
        row: row inside the split.
        item: which image of that cell, where the column holds lists of images.
    """

    dataset: str
    id: str
    path: str
    location: str
    split: str | None = None
    column: str = ""
    row: int = 0
    item: int = 0

    def read(self, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        """The encoded image.

        Raises:
            ValueError: it is missing, no regular file, or too large.
        """
        if not self.column:
            return _read_file(self.location, max_bytes)
        value = _open_column(self.location, self.split, self.column)[self.row][self.column]
        if isinstance(value, list):
            value = value[self.item] if self.item < len(value) else None
        if value is None:
            raise ValueError(f"expected an image in row {self.row}, column {self.column!r}, got nothing.")
        if value.get("bytes") is None:
            return _read_file(value["path"], max_bytes)
        if len(value["bytes"]) > max_bytes:
            raise ValueError(f"expected at most {max_bytes} bytes, got {len(value['bytes'])}. Shrink the image.")
        return value["bytes"]

    def check(self, max_bytes: int = MAX_FILE_BYTES) -> None:
        """Whether `read` can be expected to work; a file is not opened.

        Raises:
            ValueError: the file is missing, no regular file, or too large.
        """
        if not self.column:
            _check_file(self.location, max_bytes)

    def to_dict(self) -> dict[str, Any]:
        """The fields, JSON-able; `Source(**fields)` gives it back."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class BadSource:
    """A line or entry of a data set that names no image.

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


@dataclass(frozen=True)
class DatasetRow:
    """One row of a data set, as its file holds it.

    Attributes:
        place: `train.jsonl:7` for a line; `train.json[7]` and `data[train/7]` for an element or row counted from 0.
        value: the parsed row; None where it cannot be read.
        images: its images, not yet opened.
        problem: why it cannot be used; None = it can.
    """

    place: str
    value: Any = None
    images: tuple[Source, ...] = ()
    problem: str | None = None


def _check_file(path: str, max_bytes: int) -> None:
    """Refuse all but a regular file of limited size: a pipe would block for ever, a device never end."""
    if "://" in path[:12]:
        raise ValueError(f"expected the path of an image, got the address {path[:120]!r}. Download it first.")
    try:
        status = os.stat(path)
    except OSError as error:
        raise ValueError(f"expected a readable image file, got {path!r} ({error.strerror}).") from error
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"expected an image file, got {path!r}, which is no regular file.")
    if status.st_size > max_bytes:
        raise ValueError(f"expected at most {max_bytes} bytes, got {status.st_size}. Shrink the image.")


def _read_file(path: str, max_bytes: int) -> bytes:
    """A regular file's content."""
    _check_file(path, max_bytes)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"expected a readable image file, got {path!r} ({error.strerror}).") from error


def is_dataset(path: str | Path) -> bool:
    """Whether a path names a data set (a folder, `.json`, `.jsonl` or `.parquet`) rather than an image."""
    return Path(path).is_dir() or Path(path).suffix.lower() in (".json", ".jsonl", ".parquet")


def is_saved_table(path: Path) -> bool:
    """Whether a path is a folder that `datasets`' save_to_disk wrote."""
    return any((path / file).is_file() for file in _DATASETS_FILES)


def read_sources(
    dataset: str | Path, image_folder: str | Path | None = None, column: str | None = None
) -> list[Source | BadSource]:
    """List the images of a data set, in its order; no image is opened.

    Args:
        dataset: a folder of images (with its sub-folders, by name; hidden files are left out), an image, a `.jsonl`
            file of `{"image": path, "id": optional}`, a `.json` file of LLaVA's form (a list of such objects; those
            without an image are left out), a folder that `datasets`' save_to_disk wrote, or `.parquet` files of such a
            table (one, or a folder of them).
        image_folder: where the paths of a `.json` or `.jsonl` begin; None = the file's folder.
        column: column of the images in a `datasets` folder; None = the only one of them that holds images.

    Returns:
        A source per image, and a `BadSource` per entry that names none.

    Raises:
        ValueError: it is none of these.
        ImportError: a `datasets` folder, and that package is not installed.
    """
    path = Path(dataset)
    name = path.resolve().name
    if is_saved_table(path) or (path.is_file() and path.suffix.lower() == ".parquet"):
        return list(_read_datasets_folder(path, name, column))
    if path.is_dir():
        if not _has_images(path) and any(path.rglob("*.parquet")):
            return list(_read_datasets_folder(path, name, column))
        return list(_read_folder(path, name))
    if not path.is_file():
        raise ValueError(
            f"expected a folder of images, an image, a .jsonl, .json or .parquet file, got {str(dataset)!r}, "
            "which does not exist. Check the path."
        )
    start = path.parent if image_folder is None else Path(image_folder)
    if path.suffix.lower() in (".json", ".jsonl"):
        return list(_read_entries(path, name, start))
    return [Source(_in_unicode(path.resolve().parent.name), _in_unicode(name), _in_unicode(name), str(path))]


def _in_unicode(name: str) -> str:
    """A name as valid Unicode: bytes that are no UTF-8 are written out as escapes, for the cache tells names apart."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob("*"))


def _read_folder(folder: Path, name: str) -> Iterator[Source]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(entry for entry in folders if not entry.startswith("."))
        for file in sorted(files):
            if file.startswith(".") or Path(file).suffix.lower() not in IMAGE_SUFFIXES:
                continue
            location = Path(parent, file)
            path = _in_unicode(location.relative_to(folder).as_posix())
            yield Source(_in_unicode(name), path, path, str(location))


def read_json_rows(path: Path, folder: Path) -> Iterator[DatasetRow]:
    """Read the rows of a `.json` list or a `.jsonl` file, in order; no image is opened.

    A line of a `.jsonl` that cannot be read is a row with a problem. A list that breaks off ends there: where its next
    element begins is unknown.

    Args:
        path: the file; a byte order mark in front of it, or of a line of a `.jsonl`, is skipped.
        folder: where relative image paths begin.

    Raises:
        ValueError: it is no UTF-8, no list, or the list breaks off.
    """
    dataset = path.resolve().name
    if path.suffix.lower() == ".jsonl":
        return (row_with_files(f"{path.name}:{line}", entry, dataset, folder) for line, entry in _parse_lines(path))
    return (row_with_files(f"{path.name}[{index}]", entry, dataset, folder) for index, entry in _parse_list(path))


def row_with_files(place: str, entry: Any, dataset: str, folder: Path) -> DatasetRow:
    """A row whose images are files: `image` (LLaVA) or `images` (TRL), a path or a list of them; or a page of MMC4's.

    Args:
        place: where the row stands.
        entry: the parsed row, or the exception that stands for it.
        dataset: name of the data set.
        folder: where relative paths begin.
    """
    place = _in_unicode(place)
    if isinstance(entry, Exception):
        return DatasetRow(place, problem=f"expected a JSON object, got something else ({entry})")
    if not isinstance(entry, Mapping):
        return DatasetRow(place, problem=f"expected a JSON object, got a {type(entry).__name__}")
    if "text_list" in entry and "image_info" in entry:
        try:
            entry = _read_page(entry)
        except ValueError as error:
            return DatasetRow(place, entry, problem=str(error))
    held = [key for key in ("image", "images") if entry.get(key) is not None]
    if len(held) > 1:
        return DatasetRow(place, entry, problem="expected `image` or `images`, got both. Leave one out")
    if not held and (others := [key for key, value in entry.items() if _looks_like_image(key, value)]):
        got = f"expected images under `image` or `images`, got {str(entry[others[0]])[:80]!r} under {others[0]!r}"
        return DatasetRow(place, entry, problem=f"{got}. Call it `image`, or leave it out where it is none")
    value = entry[held[0]] if held else []
    paths = value if isinstance(value, list) else [value]
    images = []
    for path in paths:
        if not _may_be_path(path):
            return DatasetRow(place, entry, problem=f"expected the path of an image, got {str(path)[:80]!r}")
        location = path if "://" in path[:12] else str(folder / path)
        row_id = str(entry["id"]) if entry.get("id") is not None else path
        images.append(Source(_in_unicode(dataset), _in_unicode(row_id), _in_unicode(path), location))
    return DatasetRow(place, make_valid(entry), tuple(images))


def _read_page(entry: Mapping[str, Any]) -> dict[str, Any]:
    """MMC4's row as a document: each image stands in front of the sentence that it was matched with.

    Raises:
        ValueError: it is no such row.
    """
    sentences, found = entry["text_list"], entry["image_info"]
    try:
        places = [(int(info["matched_text_index"]), info["image_name"]) for info in found]
    except (TypeError, KeyError, ValueError):
        places = [(-1, "")]
    is_page = isinstance(sentences, list) and all(isinstance(sentence, str) for sentence in sentences)
    if not is_page or not all(0 <= place < len(sentences) for place, _ in places):
        raise ValueError(
            "expected MMC4's `text_list` of sentences, and `image_info` with the `image_name` of each image and the "
            f"`matched_text_index` of its sentence, got {str(found)[:80]!r} beside {str(sentences)[:80]!r}"
        )
    parts: list[dict[str, str]] = []
    for number, sentence in enumerate(sentences):
        parts += [{"type": "image"}] * sum(place == number for place, _ in places)
        if parts and parts[-1]["type"] == "text":
            parts[-1] = {"type": "text", "text": f"{parts[-1]['text']} {sentence}"}
        else:
            parts.append({"type": "text", "text": sentence})
    names = [name for _, name in sorted(places, key=lambda each: each[0])]
    kept = {name: value for name, value in entry.items() if name not in ("text_list", "image_info")}
    return {**kept, "images": names, "messages": [{"role": "assistant", "content": parts}]}


def _may_be_path(value: Any) -> bool:
    """Whether a row's value can be the path of an image: text, and not an image in base64."""
    if not isinstance(value, str) or not value.strip() or "\0" in value or len(value) > _MAX_PATH_LENGTH:
        return False
    return value[:5].lower() != "data:"


def _looks_like_image(key: Any, value: Any) -> bool:
    """Whether a row's entry is an image under a name that nobody reads: by its name, or by what it holds."""
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, Mapping):  # as `datasets` keeps encoded images
        return first.get("bytes") is not None and "path" in first
    if isinstance(first, str) and Path(first).suffix.lower() in IMAGE_SUFFIXES:
        return True
    return isinstance(first, str | bytes) and bool(first) and _IMAGE_KEY.fullmatch(str(key).lower()) is not None


def _parse_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers and parsed lines; an exception stands for a line that is no JSON."""
    with path.open("rb") as lines:
        if lines.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise ValueError(f"expected JSON lines in UTF-8 in {str(path)!r}, got UTF-16. Save the file as UTF-8.")
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield number, STRICT_JSON.decode(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                yield number, error


def _parse_list(path: Path) -> Iterator[tuple[int, Any]]:
    """Elements of a JSON list, numbered from 0; the list is never held in parsed form."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ValueError(f"expected a JSON list in UTF-8 in {str(path)!r}, got: {error}.") from error
    position, index = _skip(text, 0), 0
    if text[position : position + 1] != "[":
        got = "an empty file" if position == len(text) else "something else"
        raise ValueError(
            f"expected a JSON list of objects in {str(path)!r}, got {got}. One object per line belongs in a "
            ".jsonl file."
        )
    position = _skip(text, position + 1)
    while text[position : position + 1] != "]":
        try:
            entry, position = _decode_element(text, position)
            position = _skip(text, position)
            if text[position : position + 1] not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' or ']' behind an element", text, position)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"expected a JSON list of objects in {str(path)!r}, got: {error}.") from error
        yield index, entry
        index += 1
        if text[position] == ",":
            position = _skip(text, position + 1)
    if (end := _skip(text, position + 1)) < len(text):
        error = json.JSONDecodeError("something stands behind the list", text, end)
        raise ValueError(
            f"expected one JSON list in {str(path)!r}, got: {error}. Join several lists to one, or name several files."
        )


def _decode_element(text: str, position: int) -> tuple[Any, int]:
    """An element of a list and where it ends; an exception stands for one that only a lenient reader takes."""
    try:
        return STRICT_JSON.raw_decode(text, position)
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        return error, json.JSONDecoder().raw_decode(text, position)[1]


def _skip(text: str, position: int) -> int:
    """The next position that holds no white space."""
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _read_entries(path: Path, dataset: str, folder: Path) -> Iterator[Source | BadSource]:
    """The images of a JSON file's rows.

    Mixtures for training hold conversations without an image, and LLaVA's lists rows of text alone: there is nothing
    to look at in them. A line of a `.jsonl` that is no conversation was meant to name an image.
    """
    for row in read_json_rows(path, folder):
        is_talk = isinstance(row.value, Mapping) and ("conversations" in row.value or "messages" in row.value)
        if row.problem is not None:
            yield BadSource(_in_unicode(dataset), row.place, row.problem)
        elif not row.images and path.suffix.lower() == ".jsonl" and not is_talk:
            problem = f"expected an object whose `image` is a path, got {str(row.value)[:120]}"
            yield BadSource(_in_unicode(dataset), row.place, problem)
        yield from row.images


def open_rows(location: str) -> Mapping[str | None, Any]:
    """Split -> `datasets.Dataset` of a table on disk; a table without splits has the one split None.

    Args:
        location: a folder that save_to_disk wrote, a `.parquet` file, or a folder of `.parquet` files.

    Raises:
        ValueError: it is none of these.
        ImportError: the `datasets` package is not installed.
    """
    try:
        from datasets import Dataset, DatasetDict, load_from_disk
    except ImportError as error:
        message = f'{location!r} needs the `datasets` package: pip install "moai-vlm[train]" ({error})'
        raise ImportError(message) from error
    path = Path(location)
    try:
        if is_saved_table(path):
            loaded = load_from_disk(location)
        else:
            files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
            loaded = Dataset.from_parquet([str(file) for file in files])
    except (OSError, ValueError) as error:
        raise ValueError(
            f"expected a folder that save_to_disk wrote, or Parquet, got {location!r}: {error}."
        ) from error
    return loaded if isinstance(loaded, DatasetDict) else {None: loaded}


def image_columns(rows: Any) -> dict[str, bool]:
    """Columns of a `datasets.Dataset` that hold images, and whether each holds lists of them.

    Those are `datasets.Image`, and what it is stored as (bytes and path), which is all that other writers of Parquet
    leave of it.
    """
    from datasets import Image, LargeList, List

    columns = {}
    for name, feature in rows.features.items():
        is_list = isinstance(feature, List | LargeList)
        kind = feature.feature if is_list else feature
        if isinstance(kind, Image) or (isinstance(kind, Mapping) and set(kind) == {"bytes", "path"}):
            columns[name] = is_list
    return columns


def choose_image_column(rows: Any, column: str | None, name: str) -> str | None:
    """The column of a `datasets.Dataset` whose images are meant.

    Args:
        rows: the table.
        column: what the user says; None = the only one that holds images.
        name: of the table, for messages.

    Returns:
        Its name; None where no column holds images and none was named.

    Raises:
        ValueError: it is no column of images, or there are several.
    """
    columns = list(image_columns(rows))
    if column is None and len(columns) < 2:
        return columns[0] if columns else None
    if column not in columns:
        got = f"{columns or 'none'}" + (f" but not {column!r}" if column else "")
        raise ValueError(
            f"expected one column of images in {name!r}, got {got}. Name one (`column` of a training source, --column "
            "of moai verbalize), join them to one list, or cast to datasets.Image()."
        )
    return column


def count_row_images(rows: Any, column: str) -> list[int]:
    """Images in each cell of a column, told from Arrow's offsets: none is read."""
    is_list = image_columns(rows)[column]
    counts: list[int] = []
    for start in range(0, len(rows), 1024):
        cells = rows.select_columns([column]).with_format("arrow")[start : start + 1024][column]
        for chunk in cells.chunks:
            lengths = chunk.value_lengths().to_pylist() if is_list else chunk.is_valid().to_pylist()
            counts += [int(length or 0) for length in lengths]
    return counts


@lru_cache(maxsize=8)
def _open_column(location: str, split: str | None, column: str) -> Any:
    """One column of encoded images; kept open, because every row of it is read one after the other."""
    from datasets import Image, List

    rows = open_rows(location)[split].select_columns([column])
    encoded = Image(decode=False)
    return rows.cast_column(column, List(encoded) if image_columns(rows)[column] else encoded)


def _read_datasets_folder(folder: Path, name: str, column: str | None) -> Iterator[Source]:
    for split, rows in open_rows(str(folder)).items():
        chosen = choose_image_column(rows, column, str(folder))
        if chosen is None:
            raise ValueError(
                f"expected a column of images in {str(folder)!r}, got {rows.column_names}. Cast one to "
                "datasets.Image()."
            )
        is_list = image_columns(rows)[chosen]
        ids = rows["id"] if "id" in rows.features else None
        counts = count_row_images(rows, chosen) if is_list else []
        for row in range(len(rows)):
            place = f"{row}" if split is None else f"{split}/{row}"
            row_id = place if ids is None else str(ids[row])
            for item in range(counts[row] if is_list else 1):
                yield Source(_in_unicode(name), row_id, "", str(folder), split, chosen, row, item)
