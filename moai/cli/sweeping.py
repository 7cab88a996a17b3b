"""What `moai ablate` and `moai compare` do: a sweep, then its table and plot."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .errors import reporting_errors

if TYPE_CHECKING:
    from ..evaluation.sweep import Results
    from ..evaluation.sweep_settings import SweepSettings

__all__ = ["MarkdownOption", "OnlyOption", "ReportOption", "SeedsOption", "run_command"]

OnlyOption = Annotated[list[str] | None, typer.Option("--only", help="Run only this variant; may be repeated.")]
SeedsOption = Annotated[str | None, typer.Option("--seeds", help="Such as 0,1 in place of the settings'.")]
MarkdownOption = Annotated[
    Path | None, typer.Option("--markdown", help="Where the table goes; default: a file in --out.")
]
ReportOption = Annotated[bool, typer.Option("--report", help="Run nothing; write table and plot anew.")]


def run_command(
    command: str,
    config: Path,
    start: Path | None,
    out: Path,
    *,
    only: list[str] | None,
    seeds: str | None,
    markdown: Path,
    report_only: bool,
    debug: bool,
) -> None:
    """Run what is missing of a sweep, and write its report whenever it ends.

    Args:
        command: The command's name.
        config: The sweep.
        start: The checkpoint that its variants start from; None = they have starts of their own.
        out: Its folder.
        only: See the options.
        seeds: Likewise.
        markdown: Where the table goes.
        report_only: Likewise.
        debug: Likewise.
    """
    with reporting_errors(debug):
        if not debug:
            from .answer_settings import silence_libraries

            silence_libraries()
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
                    _write(command, sweep, results, markdown)


def _parse_seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ValueError(f"expected --seeds as numbers such as 0,1, got {text!r}.") from None


def _write(command: str, sweep: SweepSettings, results: Results, target: Path) -> None:
    """Table and plot, side by side; without matplotlib the table alone."""
    from ..evaluation.report import draw_sweep, sweep_report, write_markdown

    plot: Path | None = target.with_suffix(".png")
    try:
        draw_sweep(sweep, results, plot)
    except ImportError as error:
        print(error)
        plot = None
    report = sweep_report(sweep, results, None if plot is None else plot.name)
    write_markdown(target, report, command)
    print(report)
    print(f"Written: {target}" + ("" if plot is None else f", {plot}"))
