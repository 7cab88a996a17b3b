"""Training tasks: a model, its batches, its loss."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["RUNNERS", "find_runner"]

#: ``task`` of a recipe -> function that trains by it; a recipe without one trains a model that answers.
RUNNERS = {
    "data2vec": "moai.training.tasks.data2vec.run.run_data2vec",
    "emu_decoder": "moai.training.tasks.emu_decoder.run.run_emu_decoder",
    "tcl": "moai.training.tasks.tcl.run.run_tcl",
}


def find_runner(source: Any, overrides: Sequence[str]) -> Callable[..., Any] | None:
    """The function that trains by a recipe with a ``task``; None for one without.

    Args:
        source: A recipe: YAML file, mapping or settings.
        overrides: ``key=value`` words laid over it.

    Raises:
        ValueError: There is no such task, or the recipe cannot be read.
    """
    from moai.settings import apply_overrides, read_yaml

    if isinstance(source, str | Path):
        source = read_yaml(source)
    if not isinstance(source, Mapping):
        return None
    task = apply_overrides(source, [word for word in overrides if word.startswith("task=")]).get("task")
    if task is None:
        return None
    if task not in RUNNERS:
        raise ValueError(f"`task` must be one of {', '.join(RUNNERS)}, or left out, got {task!r}.")
    module, _, name = RUNNERS[task].rpartition(".")
    return getattr(importlib.import_module(module), name)
