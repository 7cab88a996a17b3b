"""Plots of an evaluation's results."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from moai.import_utils import is_matplotlib_available

__all__ = ["draw_conditions"]


def draw_conditions(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> bytes | None:
    """One panel per kind, one row per condition: mean score, its interval, and the model's as a line.

    Args:
        results: By condition and kind, as in ``results.json``.

    Returns:
        A PNG file; None without matplotlib.
    """
    if not is_matplotlib_available():
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names, kinds = list(results), list(next(iter(results.values())))
    columns = min(5, len(kinds))
    lines = -(-len(kinds) // columns)
    figure = Figure(figsize=(2 + 2.1 * columns, lines * (0.9 + 0.24 * len(names))), layout="constrained")
    all_axes = figure.subplots(lines, columns, sharey=True, squeeze=False)
    for axes in all_axes.flat[len(kinds) :]:
        axes.set_visible(False)
    for axes, kind in zip(all_axes.flat, kinds, strict=False):
        for place, name in enumerate(names):
            row = results[name][kind]
            value, (low, high) = row["value"], row["interval95"]
            reach = [[100 * max(0.0, value - low)], [100 * max(0.0, high - value)]]
            colour = "black" if place == 0 else "C0"
            axes.errorbar([100 * value], [place], xerr=reach, fmt="o", color=colour, markersize=4, capsize=2)
        axes.axvline(100 * results[names[0]][kind]["value"], color="0.8", linewidth=1, zorder=0)
        if all(results[name][kind]["interval95"][1] <= 1 for name in names):  # CIDEr has no such end
            axes.set_xlim(-4, 104)
        axes.set_title(kind.replace("_", " "), fontsize=9)
        axes.grid(axis="x", color="0.93")
        axes.set_axisbelow(True)
    for line in all_axes:
        line[0].set_yticks(range(len(names)), names, fontsize=8)
    all_axes[0, 0].invert_yaxis()
    figure.supxlabel("percent, 95 % intervals; the line is the model's", fontsize=8)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, dpi=90, format="png", metadata={"Software": None})
    return buffer.getvalue()
