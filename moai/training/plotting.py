"""Plots of a run: loss and expert routing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moai.import_utils import require

from .metrics_logging import EXPERT_NAMES, STREAMS, read_log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_plots"]


def draw_plots(folder: Path) -> list[Path]:
    """Draw ``loss.png`` and ``routing.png`` from ``log.jsonl``; without matplotlib a line says so.

    Args:
        folder: Output folder of a run.

    Returns:
        The images that were written.
    """
    lines = read_log(folder / "log.jsonl")
    try:
        require("matplotlib", purpose="Plots of loss and routing")
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
    axes.set(xlabel="optimizer step", ylabel="loss per answer token (nats)" if "routing" in lines[0] else "loss")
    figures = [(loss, "loss.png")]
    if "routing" in lines[0]:
        figures.append((_draw_routing(lines, steps), "routing.png"))
    written = []
    for figure, name in figures:
        FigureCanvasAgg(figure).print_figure(folder / name, dpi=120)
        written.append(folder / name)
    return written


def _draw_routing(lines: Sequence[Mapping[str, Any]], steps: Sequence[int]) -> Figure:
    """Shares of a MoAI's experts over the steps."""
    from matplotlib.figure import Figure

    routing = Figure(figsize=(7, 6), layout="constrained")
    for stream, axes in zip(STREAMS, routing.subplots(2, 1, sharex=True), strict=True):
        told = [line for line in lines if stream in line["routing"]]
        for expert in EXPERT_NAMES[stream]:
            shares = [line["routing"][stream][expert] for line in told]
            axes.plot([line["step"] for line in told], shares, label=expert)
        axes.set(ylabel="share", ylim=(0, 1), title=f"{stream} stream: share of each expert, mean over layers")
        axes.legend(loc="upper right")
    axes.set(xlabel="optimizer step")
    return routing
