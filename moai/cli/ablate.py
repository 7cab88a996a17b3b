"""``moai ablate``: the paper's ablations in small, as a table and a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import DebugOption
from .sweeping import MarkdownOption, OnlyOption, ReportOption, SeedsOption, run_command

__all__ = ["ablate"]


def ablate(
    start: Annotated[Path, typer.Option("--start", help="The checkpoint that all variants start from.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for results; finished ones are kept.")] = Path(
        "runs/ablation"
    ),
    config: Annotated[Path, typer.Option("--config", "-c", help="What is compared.")] = Path("configs/ablation.yaml"),
    only: OnlyOption = None,
    seeds: SeedsOption = None,
    markdown: MarkdownOption = None,
    report_only: ReportOption = False,
    debug: DebugOption = False,
) -> None:
    """Train and test the paper's variants: verbalizers, stages, top-k, gates, latents.

    The same command again goes on after Ctrl-C or a kill. Table and plot are written whenever it ends.
    """
    chosen = {"only": only, "seeds": seeds, "report_only": report_only, "debug": debug}
    run_command("ablate", config, start, out, markdown=markdown or out / "ablation.md", **chosen)
