"""``moai ablate``: the paper's ablations in small, as a table and a plot."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .errors import reporting_errors
from .options import DebugOption

if TYPE_CHECKING:
    from ..evaluation.ablation import AblationResult
    from ..evaluation.ablation_config import AblationConfig

__all__ = ["ablate"]


def ablate(
    start: Annotated[
        Path,
        typer.Option(
            "--start", help="What all variants start from: a checkpoint, or a folder of `python -m moai.training.nano`."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for results; finished ones are kept.")] = Path(
        "runs/ablation"
    ),
    config: Annotated[Path, typer.Option("--config", "-c", help="What is compared.")] = Path("configs/ablation.yaml"),
    only: Annotated[list[str] | None, typer.Option("--only", help="Run only this variant; may be repeated.")] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="Such as 0,1 in place of the settings'.")] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Where the table goes; default: ablation.md in --out.")
    ] = None,
    prepare: Annotated[bool, typer.Option("--prepare", help="First train what the start lacks (long).")] = False,
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

        from ..evaluation.ablation import load_results
        from ..evaluation.ablation_config import load_ablation_config

        if not config.is_file():
            raise ValueError(f"expected the settings in {config}, got no such file. Name them with --config.")
        settings = load_ablation_config(config)
        if seeds is not None:
            settings = replace(settings, seeds=_parse_seeds(seeds))
        if prepare:
            _prepare(settings, start)
        target = markdown or out / "ablation.md"
        try:
            if not report_only:
                _run(settings, start, out, tuple(only or ()))
        finally:
            results = load_results(settings, start, out)
            if results:
                _write(settings, results, target)


def _parse_seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ValueError(f"expected --seeds as numbers such as 0,1, got {text!r}.") from None


def _prepare(settings: AblationConfig, start: Path) -> None:
    """Train tokenizer, decoder and compressor as far as the start needs them."""
    from ..evaluation.ablation_config import FINISHED
    from ..training.nano import train_nano

    if settings.start_stage == FINISHED:
        raise ValueError("a finished checkpoint needs no --prepare. Leave it out, or set another `start_stage`.")
    stages = ("tokenizer", "text", "copying", "phrases", "questions", "multimodal")
    train_nano(settings.start_recipe, start, stages[: stages.index(settings.start_stage) + 1])


def _run(settings: AblationConfig, start: Path, out: Path, only: tuple[str, ...]) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from ..evaluation.ablation import run_ablation

    console = Console(stderr=True, highlight=False)
    bar = Progress(
        MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"), console=console
    )
    began = time.monotonic()
    with bar:
        row = bar.add_task("starting", total=None)

        def report(what: str, done: int, total: int, share: float) -> None:
            bar.update(row, description=what, completed=done, total=total)

        def finished(result: AblationResult) -> None:
            spent = result.train_seconds + result.test_seconds
            mean = 100 * sum(result.right) / len(result.right)
            console.print(f"{result.variant}, seed {result.seed}: {mean:.1f} % right, {spent:.0f} s")

        run_ablation(settings, start, out, only, report, finished)
        bar.update(row, description="done", completed=bar.tasks[0].total or 0)
    console.print(f"This call took {(time.monotonic() - began) / 60:.1f} min.")


def _write(settings: AblationConfig, results: dict[tuple[str, int], AblationResult], target: Path) -> None:
    """Table and plot, side by side; without matplotlib the table alone."""
    from ..evaluation.ablation_report import draw_ablation, markdown_report, write_markdown

    plot: Path | None = target.with_suffix(".png")
    try:
        draw_ablation(settings, results, plot)
    except ImportError as error:
        print(error)
        plot = None
    report = markdown_report(settings, results, None if plot is None else plot.name)
    write_markdown(target, report)
    print(report)
    print(f"Written: {target}" + ("" if plot is None else f", {plot}"))
