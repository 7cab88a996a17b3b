"""Exit codes, and exceptions as messages for users."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import typer

__all__ = [
    "EXIT_FAILED",
    "EXIT_INTERRUPTED",
    "EXIT_PARTIAL",
    "EXIT_USAGE",
    "exit_for",
    "fail",
    "reporting_errors",
]

EXIT_FAILED, EXIT_USAGE, EXIT_PARTIAL, EXIT_INTERRUPTED = 1, 2, 3, 130


@contextmanager
def reporting_errors(is_debugging: bool) -> Iterator[None]:
    """Turn an exception into one message on standard error and an exit code."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:  # the reader of a pipe, `head` say, has seen enough
        raise typer.Exit(EXIT_FAILED) from None
    except typer.Exit:
        raise
    except OSError as error:
        fail(_describe(error), is_debugging)
    except (ValueError, ImportError) as error:
        fail(str(error), is_debugging)
    except Exception as error:  # noqa: BLE001 - the last place where a message can replace a traceback
        fail(f"unexpected {type(error).__name__}: {error}. --debug shows where.", is_debugging)


def _describe(error: OSError) -> str:
    """The system's message, with the file that it is about."""
    text = str(error)
    if error.errno == errno.ENOSPC:
        text += ". What is written is kept: make room and give the same command again."
    return text if error.filename is None or str(error.filename) in text else f"{error.filename}: {text}"


def fail(message: str, is_debugging: bool, code: int = EXIT_FAILED) -> None:
    """Print an error on standard error and leave with an exit code."""
    from rich.console import Console
    from rich.text import Text

    from .rendering import printable

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if is_debugging:
        console.print_exception()
    console.print(Text.assemble(("error: ", "bold red"), printable(message)))
    raise typer.Exit(code)


def exit_for(num_failed: int, num_all: int | None) -> None:
    """Leave with the code that tells whether all or some of several images or questions failed."""
    if num_failed:
        raise typer.Exit(EXIT_FAILED if num_failed == num_all else EXIT_PARTIAL)
