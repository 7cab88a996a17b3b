"""Shards that another process makes."""

from __future__ import annotations

import time
from pathlib import Path

__all__ = ["wait_for_file"]

_LOOK_EVERY_S = 0.2


def wait_for_file(path: Path, patience_s: float = 600.0) -> Path:
    """Wait until a builder process has written a file; builders put whole files in place at once.

    Args:
        path: The file.
        patience_s: Longest wait in seconds.

    Returns:
        ``path``.

    Raises:
        TimeoutError: It does not come.
    """
    started = time.monotonic()
    while not path.is_file():
        if time.monotonic() - started > patience_s:
            raise TimeoutError(f"expected {path} within {patience_s:g} s. Is the builder process alive?")
        time.sleep(_LOOK_EVERY_S)
    return path
