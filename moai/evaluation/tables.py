"""Tables in Markdown, and numbers as all tables show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["format_difference", "format_share", "format_table"]


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


def format_share(row: Mapping[str, Any] | None) -> str:
    """``value`` and ``interval95`` of a row in percent; a dash where there is none."""
    if row is None:
        return "-"
    low, high = row["interval95"]
    return f"{100 * row['value']:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def format_difference(row: Mapping[str, Any]) -> str:
    """``difference`` and ``interval95`` of a row in percent points, with their signs."""
    low, high = row["interval95"]
    return f"{100 * row['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
