"""``moai verbalize --profile``: time and memory of each verbalizer."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from verbalizers.core.profiling import Cost

__all__ = ["print_costs", "summarise_costs"]


def summarise_costs(images: Sequence[Sequence[Cost]]) -> list[dict[str, str]]:
    """One row per verbalizer over all images, ready to be shown.

    Args:
        images: The costs of each image, as :func:`verbalizers.core.profiling.profile_scene` gives them.

    Returns:
        Rows with ``verbalizer``, ``first look``, ``seconds`` (median, and the range of several images),
        ``peak MiB``, ``peak GPU MiB`` and ``failed``.
    """
    by_name: dict[str, list[Cost]] = {}
    for costs in images:
        for cost in costs:
            by_name.setdefault(cost.name, []).append(cost)
    rows = []
    for name, costs in by_name.items():
        seconds = [cost.seconds for cost in costs]
        shown = f"{statistics.median(seconds):.3f}"
        if len(seconds) > 1:
            shown += f" [{min(seconds):.3f}-{max(seconds):.3f}]"
        first = [cost.first_seconds for cost in costs if cost.first_seconds is not None]
        on_gpu = [cost.peak_gpu_mib for cost in costs if cost.peak_gpu_mib is not None]
        rows.append(
            {
                "verbalizer": name,
                "first look": f"{first[0]:.3f}" if first else "",
                "seconds": shown,
                "peak MiB": f"{max(cost.peak_mib for cost in costs):.0f}",
                "peak GPU MiB": f"{max(on_gpu):.0f}" if on_gpu else "",
                "failed": str(sum(bool(cost.failure) for cost in costs) or ""),
            }
        )
    return rows


def print_costs(images: Sequence[Sequence[Cost]]) -> None:
    """Print the table; columns that are empty throughout are left out."""
    rows = summarise_costs(images)
    if not rows:
        Console().print("no verbalizer looked, nothing to profile")
        return
    table = Table(
        title=f"Seconds per image ({len(images)} looked at; the first look loads the model), memory above before"
    )
    for column in rows[0]:
        if any(row[column] for row in rows):
            table.add_column(column, justify="left" if column == "verbalizer" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[column.header] for column in table.columns))
    Console().print(table)
