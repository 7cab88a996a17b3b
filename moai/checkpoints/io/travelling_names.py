"""How a file in a folder names a checkpoint elsewhere, so that the folder can be moved, copied or uploaded.

A name is, tried in this order: a path beginning with ``./`` or ``../``, relative to the folder; a checkpoint that ships
with this package (``moai-nano``, ``owlv2-nano``, ``owlv2-nano/vocabulary.txt``); a path on this machine; a name on the
hub. None that we write is an absolute path.
"""

from __future__ import annotations

import os
from pathlib import Path

from .lookup import BUNDLED_FOLDER

__all__ = ["name_of", "resolve_name"]

_DOTS = ("./", "../")
#: Where names of bundled checkpoints are looked up.
_BUNDLED_ROOTS = (BUNDLED_FOLDER / "verbalizers", BUNDLED_FOLDER)


def name_of(target: str | Path, folder: str | Path) -> tuple[str, str | None]:
    """Name a checkpoint, or a file in one, for a file that lies in a folder.

    Args:
        target: Path, or a name that means nothing on this disk (on the hub, a published vocabulary).
        folder: Where the name will be read; it need not exist yet.

    Returns:
        The name; and the commit, where it is a snapshot in the hub's local cache.
    """
    if not Path(target).expanduser().exists():
        return str(target), None
    path = Path(target).expanduser().resolve()
    for root in _BUNDLED_ROOTS:
        if path.is_relative_to(root.resolve()):
            return path.relative_to(root.resolve()).as_posix(), None
    *_, repository, snapshots, commit = ("", "", "", *Path(os.path.abspath(Path(target).expanduser())).parts)
    if repository.startswith("models--") and snapshots == "snapshots":
        return repository.removeprefix("models--").replace("--", "/", 1), commit
    try:
        relative = Path(os.path.relpath(path, Path(folder).expanduser().resolve())).as_posix()
    except ValueError:  # on another drive of Windows
        return str(path), None
    return relative if relative.startswith(_DOTS) else f"./{relative}", None


def resolve_name(name: str, folder: str | Path) -> str:
    """Turn what a file in a folder names into what can be loaded from here.

    Args:
        name: As :func:`name_of` writes it, or as somebody typed it.
        folder: Where the file lies.

    Returns:
        An absolute path, or the name unchanged where nothing of it is on this disk.
    """
    inside = Path(folder) / name
    if name.startswith(_DOTS) or inside.exists():
        return os.path.normpath(inside.absolute())
    for root in _BUNDLED_ROOTS:
        if (root / name).exists():
            return str(root / name)
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name
