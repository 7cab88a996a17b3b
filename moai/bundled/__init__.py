"""What ships with MoAI beside its code: checkpoints, recipes and example images, found by name from any folder.

An installed package has them in this folder (setup.cfg, package_dir); a clone has them at the repository's top.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["FOLDER", "find_bundled"]

_HERE = Path(__file__).resolve().parent
#: Holds ``checkpoints/``, ``configs/`` and ``examples/``.
FOLDER = _HERE if (_HERE / "checkpoints").is_dir() else _HERE.parents[1]


def find_bundled(folder: str, name: str | Path) -> Path | None:
    """What ships under a name; None = nothing does, or a file or folder of that path is on this disk and goes first.

    Args:
        folder: ``checkpoints``, ``configs`` or ``examples``.
        name: ``"street.jpg"`` or, as in a clone, ``"examples/street.jpg"``.
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or os.path.exists(path):
        return None
    for candidate in (FOLDER / folder / path, FOLDER / path):
        if candidate.is_relative_to(FOLDER / folder) and os.path.exists(candidate):
            return candidate
    return None
