"""Files and folders that survive a kill: they appear whole or not at all, and are on disk when a call returns."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

__all__ = [
    "append_to_file",
    "atomic_file",
    "atomic_folder",
    "check_output",
    "hold_folder",
    "hold_name",
    "lock_folder",
    "naming_file",
    "read_lines",
    "sync_folder",
    "write_json",
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
        with naming_file(path):
            yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: str | Path, value: Any) -> None:
    """Write what JSON can hold, whole or not at all; see `atomic_file`."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


@contextmanager
def atomic_folder(output: str | Path, *, force: bool = False) -> Iterator[Path]:
    """Fill a temporary folder beside `output`, which becomes `output` only if no error occurred.

    Args:
        output: the folder to create.
        force: replace an existing one; it stays untouched until the new one is complete.

    Yields:
        The temporary folder.

    Raises:
        ValueError: `output` exists and `force` is not given, it is a file, or another process is making it.
    """
    output = Path(output)
    check_output(output, force=force)
    output.parent.mkdir(parents=True, exist_ok=True)
    with hold_name(output), _filled_folder(output) as folder:
        check_output(output, force=force)  # another may have finished meanwhile
        yield folder


@contextmanager
def _filled_folder(output: Path) -> Iterator[Path]:
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
    """Write behind what a file holds; the file is made where it lacks.

    Raises:
        OSError: the disk is full, say: names the file, which holds what it held before.
    """
    with naming_file(path), path.open("ab", buffering=0) as file:
        end, rest = file.tell(), memoryview(content)
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise


@contextmanager
def naming_file(path: str | Path) -> Iterator[None]:
    """Let errors in writing say which file they are about: the system's, of a full disk say, do not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def lock_folder(folder: Path) -> BinaryIO:
    """Hold the folder against a second writer for as long as the returned file is open.

    The kernel gives the lock back when the process ends, however it ends: a file that a dead process left blocks
    nobody. Processes that are forked meanwhile do not hold it.

    Raises:
        ValueError: another writer holds it; the message says which process, on which machine, since when.
    """
    return _lock(folder / LOCK_FILE, folder)


def _lock(path: Path, folder: Path) -> BinaryIO:
    """A file that is open, and locked where that is possible, for whoever writes to `folder`."""
    file = path.open("a+b", buffering=0)
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = _describe_holder(file)
        file.close()
        raise ValueError(
            f"another process is writing to {str(folder)!r}{holder}. Wait for it or stop it, or choose another place "
            "to write to."
        ) from error
    except (ImportError, OSError):  # Windows, or a file system without locks: two writers are the user's care
        return file
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    with suppress(OSError):  # on a full disk the lock is held without a name in it
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since}).encode())
    _lock_files.add(file)
    return file


def _describe_holder(file: BinaryIO) -> str:
    """Who wrote into a lock file; "" where that cannot be read."""
    try:
        file.seek(0)
        holder = json.loads(file.read(4096))
        return f" (process {int(holder['pid'])} on {str(holder['host'])!r}, since {str(holder['since'])})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


#: Locks that this process holds. A forked process closes its copies, or it would hold them after its parent's death.
_lock_files: weakref.WeakSet[BinaryIO] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: [file.close() for file in list(_lock_files)])

#: Folders that `hold_folder` holds: the thread, and how often it holds each.
_held: dict[Path, tuple[int, int]] = {}
_holding = threading.Lock()


@contextmanager
def hold_folder(folder: str | Path) -> Iterator[None]:
    """Hold a folder against all other writers; it is made where it lacks. One thread may hold it several times.

    Args:
        folder: what is written to.

    Raises:
        ValueError: another process or thread writes there (see `lock_folder`), or a file stands in its place.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"expected a folder to write to, got the file {error.filename!r}. Name another.") from error
    place, thread = folder.resolve(), threading.get_ident()
    with _holding:
        owner, times = _held.get(place, (thread, 0))
        file = None if times and owner == thread else lock_folder(folder)
        _held[place] = (thread, times + 1 if file is None else 1)
    try:
        yield
    finally:
        with _holding:
            if file is None:
                _held[place] = (thread, _held[place][1] - 1)
            else:
                del _held[place]
                file.close()


@contextmanager
def hold_name(output: Path) -> Iterator[None]:
    """Hold the name of a file or a folder, which may be yet to be made: by a hidden file beside it, gone at the end.

    Raises:
        ValueError: another process holds it; see `lock_folder`.
    """
    path = output.with_name(f".{output.name}.lock")
    while True:
        file = _lock(path, output)
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            break
        file.close()  # the one before removed it between our opening and our locking
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps open files
            path.unlink(missing_ok=True)
        file.close()


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
