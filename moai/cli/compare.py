"""``moai compare``: systems beside each other, all new and of one size, on the same scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import DebugOption
from .sweeping import MarkdownOption, OnlyOption, ReportOption, SeedsOption, run_command

__all__ = ["compare"]


def compare(
    out: Annotated[Path, typer.Option("--out", help="Folder for models and results; finished ones are kept.")] = Path(
        "runs/compare"
    ),
    config: Annotated[Path, typer.Option("--config", "-c", help="What is compared.")] = Path("configs/compare.yaml"),
    only: OnlyOption = None,
    seeds: SeedsOption = None,
    markdown: MarkdownOption = None,
    report_only: ReportOption = False,
    debug: DebugOption = False,
) -> None:
    """Train and test MoAI, Prismer, Flamingo and plain models of one size on the same scenes.

    The same command again goes on after Ctrl-C or a kill. Table and plot are written whenever it ends.
    """
    chosen = {"only": only, "seeds": seeds, "report_only": report_only, "debug": debug}
    run_command("compare", config, None, out, markdown=markdown or out / "siblings.md", **chosen)
