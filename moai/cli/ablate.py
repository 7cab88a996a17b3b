"""``moai ablate``: the paper's ablations in small, as a table and a plot."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .errors import reporting_errors
from .options import DebugOption

if TYPE_CHECKING:
    from ..evaluation.sweep import Results
    from ..evaluation.sweep_settings import SweepSettings

__all__ = ["ablate"]


def ablate(
    start: Annotated[Path, typer.Option("--start", help="The checkpoint that all variants start from.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for results; finished ones are kept.")] = Path(
        "runs/ablation"
    ),
    config: Annotated[Path, typer.Option("--config", "-c", help="What is compared.")] = Path("configs/ablation.yaml"),
    only: Annotated[list[str] | None, typer.Option("--only", help="Run only this variant; may be repeated.")] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="Such as 0,1 in place of the settings'.")] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Where the table goes; default: ablation.md in --out.")
    ] = None,
    report_only: Annotated[bool, typer.Option("--report", help="Run nothing; write table and plot anew.")] = False,
    debug: DebugOption = False,
) -> None:
    """Train and test the paper's variants: verbalizers, stages, top-k, gates, latents.

    The same command again goes on after Ctrl-C or a kill. Table and plot are written whenever it ends.
    """
    with reporting_errors(debug):
        if not debug:
            from .answer_settings import silence_libraries

            silence_libraries()
        from dataclasses import replace

        from verbalizers.core.durable_files import hold_folder

        from ..evaluation.sweep import load_results, run_sweep
        from ..evaluation.sweep_settings import load_sweep_settings

        sweep = load_sweep_settings(config)
        if seeds is not None:
            sweep = replace(sweep, seeds=_parse_seeds(seeds))
        with nullcontext() if report_only else hold_folder(out):
            try:
                if not report_only:
                    run_sweep(sweep, start, out, tuple(only or ()), lambda line: typer.echo(line, err=True))
            finally:
                if results := load_results(sweep, start, out):
                    _write(sweep, results, markdown or out / "ablation.md")


def _parse_seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ValueError(f"expected --seeds as numbers such as 0,1, got {text!r}.") from None


def _write(sweep: SweepSettings, results: Results, target: Path) -> None:
    """Table and plot, side by side; without matplotlib the table alone."""
    from ..evaluation.report import draw_sweep, sweep_report, write_markdown

    plot: Path | None = target.with_suffix(".png")
    try:
        draw_sweep(sweep, results, plot)
    except ImportError as error:
        print(error)
        plot = None
    report = sweep_report(sweep, results, None if plot is None else plot.name)
    write_markdown(target, report)
    print(report)
    print(f"Written: {target}" + ("" if plot is None else f", {plot}"))
