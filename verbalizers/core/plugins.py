"""Verbalizers of other packages: entry points of the group `moai.verbalizers`, named `<kind>.<backend>`.

They are listed without being imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

__all__ = ["ENTRY_POINT_GROUP", "import_plugin", "import_plugins", "list_plugins"]

ENTRY_POINT_GROUP = "moai.verbalizers"


@cache
def list_plugins() -> Mapping[tuple[str, str], EntryPoint]:
    """The installed plug-ins by (kind, backend), not imported.

    Listed once: reading the metadata of all installed packages takes milliseconds.
    """
    found = {}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        kind, _, backend = entry.name.partition(".")
        found[kind, backend or kind] = entry
    return found


def import_plugin(entry: EntryPoint) -> Any:
    """What an entry point names: a class, or a module that registers one when imported.

    Raises:
        ImportError: it cannot be imported.
    """
    try:
        return entry.load()
    except ImportError as error:
        raise ImportError(f"verbalizer plug-in {entry.name!r} ({entry.value}) cannot be imported: {error}") from error


@cache
def import_plugins(kind: str) -> dict[str, tuple[EntryPoint, Any]]:
    """Import the installed plug-ins of a kind, and with them what they register.

    Done once per kind.

    Returns:
        Backend -> entry point and what it names.

    Raises:
        ImportError: one of them cannot be imported.
    """
    plugins = {backend: entry for (other, backend), entry in list_plugins().items() if other == kind}
    return {backend: (entry, import_plugin(entry)) for backend, entry in plugins.items()}
