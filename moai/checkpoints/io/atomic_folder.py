"""A folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_folder(output: str | Path, *, force: bool = False) -> Iterator[Path]:
    """Fill a temporary folder beside ``output``, which becomes ``output`` only if no error occurred.

    Args:
        output: The folder to create.
        force: Replace an existing one; it stays untouched until the new one is complete.

    Yields:
        The temporary folder.

    Raises:
        ValueError: If ``output`` exists and ``force`` is not given, or is a file.
    """
    output = Path(output)
    check_output(output, force=force)
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        yield folder
        _make_readable(folder)
        if output.is_dir():
            previous = Path(tempfile.mkdtemp(prefix=f".{output.name}.old.", dir=output.parent))
            os.replace(output, previous / output.name)
            os.replace(folder, output)
            shutil.rmtree(previous)
        else:
            os.replace(folder, output)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def check_output(output: Path, *, force: bool = False) -> None:
    """Check that a folder may be created, before hours are spent on what it shall hold.

    Raises:
        ValueError: If ``output`` exists and ``force`` is not given, or is a file.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"Expected a folder to create, got the existing file {output}. Choose another name.")
    if output.is_dir() and any(output.iterdir()) and not force:
        raise ValueError(f"{output} exists and is not empty. Choose another folder, or pass force=True (--force).")


def _make_readable(folder: Path) -> None:
    """Give the permissions of any new file: temporary folders and safetensors files are private."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
