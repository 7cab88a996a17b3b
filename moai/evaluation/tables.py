"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["format_table"]


def format_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], num_left: int | None = None) -> str:
    """A table in Markdown.

    Args:
        columns: Headings.
        rows: Cells.
        num_left: The first columns, this many, are aligned on the left, the others on the right; None = all left.
    """
    num_left = len(columns) if num_left is None else num_left
    rule = ["---" if place < num_left else "---:" for place in range(len(columns))]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in (columns, rule, *rows))
