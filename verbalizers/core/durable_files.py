"""Files that survive a kill: replaced at one stroke, forced to disk, read up to a torn last line, written by one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["lock_folder", "read_lines", "replacing", "sync_folder"]

LOCK_FILE = "writer.lock"


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to disk: after a power cut, a rename is otherwise not sure to have happened."""
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to; afterwards its content is `path`'s, at one stroke and on disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    yield temporary
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


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
