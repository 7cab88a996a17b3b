"""Files and folders that survive a kill: they appear whole or not at all, and are on disk when a call returns."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

__all__ = [
    "append_to_file",
    "atomic_file",
    "atomic_folder",
    "check_output",
    "lock_folder",
    "read_lines",
    "sync_folder",
]

LOCK_FILE = "writer.lock"


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to disk: after a power cut, a rename is otherwise not sure to have happened."""
    if os.name != "nt":  # folders cannot be opened there
        _sync(folder, os.O_RDONLY)


def _sync(path: Path, mode: int = os.O_RDWR) -> None:
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary_name(path: Path) -> Path:
    """A hidden name beside `path` that no other thread or process writes to."""
    return path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Write a temporary file beside `path`, which becomes `path` only if no error occurred.

    Args:
        path: the file to write; its folder is made where it lacks.

    Yields:
        The temporary file's name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(output: str | Path, *, force: bool = False) -> Iterator[Path]:
    """Fill a temporary folder beside `output`, which becomes `output` only if no error occurred.

    Args:
        output: the folder to create.
        force: replace an existing one; it stays untouched until the new one is complete.

    Yields:
        The temporary folder.

    Raises:
        ValueError: `output` exists and `force` is not given, or it is a file.
    """
    output = Path(output)
    check_output(output, force=force)
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = _temporary_name(output)
    shutil.rmtree(folder, ignore_errors=True)  # of a killed process that had this one's number
    folder.mkdir()
    try:
        yield folder
        _make_readable(folder)
        for path in (folder, *folder.rglob("*")):
            sync_folder(path) if path.is_dir() else _sync(path)
        if output.is_dir():
            previous = folder.with_suffix(".old")
            os.replace(output, previous)
            os.replace(folder, output)
            shutil.rmtree(previous)
        else:
            os.replace(folder, output)
        sync_folder(output.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def check_output(output: Path, *, force: bool = False) -> None:
    """Check that a folder may be created, before hours are spent on what it shall hold.

    Raises:
        ValueError: `output` exists and `force` is not given, or it is a file.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"Expected a folder to create, got the existing file {output}. Choose another name.")
    if output.is_dir() and any(output.iterdir()) and not force:
        raise ValueError(f"{output} exists and is not empty. Choose another folder, or pass force=True (--force).")


def _make_readable(folder: Path) -> None:
    """Give the permissions of any new file: safetensors' files are private."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def append_to_file(path: Path, content: bytes) -> None:
    """Write behind what a file holds; the file is made where it lacks."""
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def lock_folder(folder: Path) -> BinaryIO:
    """Hold the folder against a second writer for as long as the returned file is open."""
    file = (folder / LOCK_FILE).open("wb")
    try:
        import fcntl
    except ImportError:  # Windows: without a lock two writers are the user's care
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ValueError(
            f"another process is writing to {str(folder)!r}. Wait for it, or name another --out."
        ) from error
    return file


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Whole JSON lines of a file and the byte behind each; a torn last line is left out.

    Raises:
        ValueError: a line in the middle is damaged.
    """
    if not path.exists():
        return
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            end += len(line)
            if not line.endswith(b"\n"):  # the run was killed while writing it
                return
            try:
                yield end, json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: expected JSON, got something else. Remove this line.") from error
