"""The command line: `moai --help`."""

from .app import app, main

__all__ = ["app", "main"]
