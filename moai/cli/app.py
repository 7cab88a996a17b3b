"""The command line ``moai``: one file per command.

Commands parse, call one function, print. Exit codes: 0 = all done (an answer without some of the verbalizers counts as
done and says so); 1 = failed; 2 = wrong usage; 3 = some of several images or questions were skipped, the others are
answered; 130 = interrupted.
"""

from __future__ import annotations

from typing import Annotated

import typer

from .ablate import ablate
from .ask import ask
from .compare import compare
from .convert import convert
from .evaluate import evaluate
from .info import info
from .inspect import inspect
from .plan import plan
from .reroute import reroute
from .serve import serve
from .train import train
from .verbalize import verbalize

__all__ = ["app", "main"]

app = typer.Typer(
    name="moai",
    help="A vision-language model that reads what specialised computer vision sees.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from .. import __version__

        print(f"moai-vlm {__version__}")
        raise typer.Exit()


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Entry point; see the commands."""


app.command(no_args_is_help=True)(ask)
app.command(no_args_is_help=True)(verbalize)
app.command(no_args_is_help=True)(convert)
app.command()(info)
app.command()(plan)
app.command()(serve)
app.command(no_args_is_help=True)(train)
app.command(no_args_is_help=True)(evaluate)
app.command(no_args_is_help=True)(inspect)
app.command(no_args_is_help=True)(reroute)
app.command(no_args_is_help=True)(ablate)
app.command()(compare)
