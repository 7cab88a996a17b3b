"""Writing the files of a checkpoint into a folder that may hold one already."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["replacing_files"]

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json")


@contextmanager
def replacing_files(folder: str | Path) -> Iterator[Path]:
    """Fill a temporary folder whose files go to a folder when no error has occurred.

    Weights of a former model there are removed; what else lies in the folder stays.

    Args:
        folder: Made where it lacks.

    Yields:
        The temporary folder, beside it: names relative to it hold there too.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as name:
        temporary = Path(name)
        yield temporary
        folder.mkdir(exist_ok=True)
        mask = os.umask(0)
        os.umask(mask)
        written = {path.name for path in temporary.iterdir()}
        for path in sorted(temporary.iterdir()):
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
            if path.is_dir():
                shutil.rmtree(folder / path.name, ignore_errors=True)
            os.replace(path, folder / path.name)
        for path in [path for pattern in _WEIGHTS for path in folder.glob(pattern)]:
            if path.name not in written:
                path.unlink()
