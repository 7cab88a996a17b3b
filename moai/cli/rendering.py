"""Rendering of results: panels on a terminal, plain lines in a pipe."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from verbalizers.core.durable_files import naming_file
from verbalizers.core.valid_text import make_valid

if TYPE_CHECKING:
    from ..pipeline.answers import Answer

__all__ = [
    "describe_missing",
    "footer_of",
    "is_terminal",
    "live_answer",
    "note",
    "print_json",
    "print_panel",
    "print_plain",
    "print_words",
    "printable",
    "progress_bar",
    "render_answer",
]


def is_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()


def printable(text: str) -> str:
    """Text without control characters: text read in an image must not control a terminal."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "\ufffd" for c in text)


def note(message: str) -> None:
    """Print a note on standard error; nothing for an empty message."""
    if not message:
        return
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(printable(message), style="dim"))


def print_plain(text: str) -> None:
    """Print one line."""
    with naming_file("standard output"):
        print(printable(text), flush=True)


def print_json(values: Mapping[str, Any]) -> None:
    """Print one JSON object on one line, in ASCII where standard output takes no more."""
    values = make_valid(values)
    line = json.dumps(values, ensure_ascii=False)
    try:
        line.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        line = json.dumps(values)
    with naming_file("standard output"):
        print(line, flush=True)


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[..., None]]:
    """Progress bar on standard error, where that is a terminal; what is printed meanwhile appears above it.

    Args:
        what: What is being done.
        total: How many there are to do.

    Yields:
        ``show(num_done, counts="")``: how many are done, and words behind the bar.
    """
    if not sys.stderr.isatty():  # a disabled bar of older releases still ends with an empty line
        yield lambda num_done, counts="": None
        return
    columns = [SpinnerColumn(), TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    bar = Progress(
        *columns,
        TextColumn("{task.fields[counts]}"),
        console=Console(stderr=True),
        redirect_stdout=sys.stdout.isatty(),  # results in a file or a pipe stay there
    )
    with bar:
        task = bar.add_task("", total=total, counts="")
        yield lambda num_done, counts="": bar.update(task, completed=num_done, counts=counts)


def describe_missing(missing: Mapping[str, str]) -> str:
    """Describe missing verbalizations, one line per reason."""
    kinds_of: dict[str, list[str]] = {}
    for kind, reason in missing.items():
        kinds_of.setdefault(reason, []).append(kind)
    return "\n".join(f"answered without {', '.join(kinds)}: {reason}" for reason, kinds in kinds_of.items())


def render_answer(name: str, question: str, answer: str, footer: str = "") -> Panel:
    """The panel of one answer.

    Args:
        name: The image.
        question: What was asked.
        answer: What is known of the answer by now.
        footer: Lines below it: what was missing, where the overlay is.
    """
    body = [Text(printable(question), style="italic"), Text(""), Text(printable(answer), style="bold")]
    if footer:
        body += [Text(""), Text(printable(footer), style="dim")]
    return Panel(Group(*body), title=Text(printable(name)), title_align="left", border_style="cyan", padding=(0, 1))


def print_panel(name: str, question: str, answer: str, footer: str = "") -> None:
    """Show one answer on the terminal."""
    Console().print(render_answer(name, question, answer, footer))


class LiveAnswer:
    """Terminal panel that grows with its answer.

    Args:
        live: The live region.
        name: The image.
        question: What was asked.
    """

    def __init__(self, live: Live, name: str, question: str) -> None:
        self._live, self._name, self._question, self._answer = live, name, question, ""

    def add(self, piece: str) -> None:
        """Show a further piece of the answer."""
        self._answer += piece
        self._show("")

    def finish(self, answer: str, footer: str) -> None:
        """Show the whole of it."""
        self._answer = answer
        self._show(footer)

    def _show(self, footer: str) -> None:
        self._live.update(render_answer(self._name, self._question, self._answer, footer))


@contextmanager
def live_answer(name: str, question: str) -> Iterator[LiveAnswer]:
    """Open a panel on the terminal that grows while an answer is written."""
    with Live(render_answer(name, question, "..."), console=Console(), refresh_per_second=12) as live:
        yield LiveAnswer(live, name, question)


def print_words(name: str, words: str, footer: str = "") -> None:
    """Print a verbalization."""
    if is_terminal():
        shown = words or "nothing was found"
        body = [Text(printable(shown))] + ([Text(""), Text(printable(footer), style="dim")] if footer else [])
        Console().print(Panel(Group(*body), title=Text(printable(name)), title_align="left", border_style="cyan"))
        return
    print_plain(words)
    if footer:
        note(footer)


def footer_of(output: Answer, overlay: Path | None, name: str = "") -> str:
    """Footer of an answer's panel.

    Args:
        output: The answer.
        overlay: Where its drawing is.
        name: The image, where the footer does not stand beside it.
    """
    lines = [describe_missing(output.missing)] if output.missing else []
    if output.is_unsure:
        lines.append(f"{name and f'{name}: '}may be a guess: confidence {output.confidence:.2f}")
    if overlay is not None:
        lines.append(f"overlay: {overlay}")
    return "\n".join(lines)
