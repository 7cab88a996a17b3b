"""Settings with paths, for files that are moved together with what they name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["make_absolute", "make_relative"]

_DOTS = ("./", "../")


def make_relative(settings: Mapping[str, Any], folder: str | Path) -> dict[str, Any]:
    """Settings in which absolute paths that exist count from a folder: ``../detector``, ``./names.txt``.

    Args:
        settings: Of a verbalizer; mappings in it are gone through, all else stays.
        folder: Where they will be read.
    """

    def name(value: str) -> str:
        if not os.path.isabs(value) or not os.path.exists(value):
            return value
        try:
            path = Path(os.path.relpath(os.path.realpath(value), Path(folder).resolve())).as_posix()
        except ValueError:  # on another drive of Windows
            return value
        return path if path.startswith(_DOTS) else f"./{path}"

    return _change(settings, name)


def make_absolute(settings: Mapping[str, Any], folder: str | Path) -> dict[str, Any]:
    """The inverse of :func:`make_relative`.

    Args:
        settings: As they were read.
        folder: Where from.
    """
    return _change(
        settings,
        lambda value: os.path.normpath(Path(folder).absolute() / value) if value.startswith(_DOTS) else value,
    )


def _change(settings: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            changed[name] = _change(value, change)
        else:
            changed[name] = change(str(value)) if isinstance(value, (str, Path)) else value
    return changed
