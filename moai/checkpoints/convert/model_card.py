"""Model card of a converted checkpoint: its origin, licence and limits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

__all__ = ["write_card"]

_HUB_ORIGIN = re.compile(r"([\w.\-]+/[\w.\-]+) at \w+")


def write_card(folder: Path, origin: str, notes: Sequence[str], name: str, about: Sequence[str]) -> Path:
    """Write the card.

    Args:
        folder: Of the checkpoint.
        origin: What was converted: a folder's name, or ``owner/name at commit``.
        notes: One sentence each.
        name: What it is.
        about: Lines of licences and parts.

    Returns:
        Its path.
    """
    head = ["---", "library_name: transformers", "pipeline_tag: image-text-to-text"]
    if match := _HUB_ORIGIN.fullmatch(origin):
        head.append(f"base_model: {match[1]}")
    lines = [
        *head,
        "---",
        "",
        f"# {name}, converted",
        "",
        f"Converted from {origin} by `moai convert` (moai-vlm). {about[0]}",
        *about[1:],
        "",
        *(f"- {note}" for note in notes),
    ]
    path = folder / "README.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
