"""Rendering of results: panels on a terminal, plain lines in a pipe, overlays on disk."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

if TYPE_CHECKING:
    from ..pipeline.answers import Answer

__all__ = [
    "choose_overlay_path",
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
    "render_answer",
    "save_overlay",
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
    print(printable(text), flush=True)


def print_json(values: Mapping[str, Any]) -> None:
    """Print one JSON object on one line."""
    print(json.dumps(values, ensure_ascii=False), flush=True)


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


def choose_overlay_path(image: str, chosen: Path | None, index: int, num_images: int) -> Path:
    """Choose the path of an image's overlay.

    Args:
        image: Path of the image.
        chosen: What the user named: a file, or for several images a folder; None = beside where the command runs.
        index: Place of the image among them.
        num_images: How many there are.

    Raises:
        ValueError: The overlay would replace its own image.
    """
    prefix = f"{index + 1}_" if num_images > 1 else ""
    name = f"{prefix}{Path(image).stem}_overlay.png"
    if chosen is None:
        path = Path(name)
    elif num_images > 1 or chosen.is_dir():
        path = chosen / name
    else:
        path = chosen if chosen.suffix else chosen.with_suffix(".png")
    if path.exists() and path.resolve() == Path(image).resolve():
        raise ValueError(f"the overlay would replace the image {image!r} itself. Name another --overlay.")
    return path


def save_overlay(scene: Any, image: str, path: Path) -> Path:
    """Draw a scene over its image and save it.

    Args:
        scene: What was found.
        image: Path of the image.
        path: Where to save; folders are made.

    Returns:
        ``path``.

    Raises:
        ValueError: Its format is not one that images are saved in.
    """
    from verbalizers import draw_scene

    from ..processing.image_loading import load_image

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        draw_scene(scene, load_image(image)).save(path)
    except (KeyError, ValueError) as error:
        raise ValueError(f"the overlay cannot be saved as {path}: {error}. Name a .png file.") from error
    return path


def footer_of(output: Answer, overlay: Path | None) -> str:
    """Footer of an answer's panel."""
    lines = [describe_missing(output.missing)] if output.missing else []
    if overlay is not None:
        lines.append(f"overlay: {overlay}")
    return "\n".join(lines)
