"""Plots of a run: its loss, and the tables of its task."""

from __future__ import annotations

from pathlib import Path

from moai.import_utils import require

from .metrics_logging import read_log, tables_of

__all__ = ["draw_plots"]


def draw_plots(folder: Path) -> list[Path]:
    """Draw ``loss.png`` and, of each table in ``log.jsonl``, an image of its name; without matplotlib a line says so.

    Args:
        folder: Output folder of a run.

    Returns:
        The images that were written.
    """
    lines = read_log(folder / "log.jsonl")
    try:
        require("matplotlib", purpose="Plots of a run")
    except ImportError as error:
        print(error, flush=True)
        return []
    if not lines:
        return []
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [line["step"] for line in lines]
    loss = Figure(figsize=(7, 4), layout="constrained")
    axes = loss.subplots()
    axes.plot(steps, [line["loss"] for line in lines], label="training")
    if measured := [line for line in lines if "validation_loss" in line]:
        values = [line["validation_loss"] for line in measured]
        axes.plot([line["step"] for line in measured], values, marker="o", label="validation")
        axes.legend()
    axes.set(xlabel="optimizer step", ylabel="loss (nats)")
    figures = {"loss": loss}
    tables = [tables_of(line) for line in lines]
    for name in dict.fromkeys(name for found in tables for name in found):
        rows = list(dict.fromkeys(row for found in tables for row in found.get(name, {})))
        if rows:
            figures[name] = Figure(figsize=(7, 3 * len(rows)), layout="constrained")
            plots = figures[name].subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
            for row, axes in zip(rows, plots, strict=True):
                told = [
                    (step, found[name][row])
                    for step, found in zip(steps, tables, strict=True)
                    if row in found.get(name, {})
                ]
                for column in dict.fromkeys(column for _, values in told for column in values):
                    points = [(step, values[column]) for step, values in told if column in values]
                    axes.plot(*zip(*points, strict=True), label=column)
                axes.set(title=f"{name}: {row}")
                axes.legend(loc="upper right")
            plots[-1].set(xlabel="optimizer step")
    written = []
    for name, figure in figures.items():
        written.append(folder / f"{name}.png")
        FigureCanvasAgg(figure).print_figure(written[-1], dpi=120)
    return written
