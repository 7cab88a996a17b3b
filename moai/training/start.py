"""Where a training starts: which checkpoint a recipe names, and whose it is."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moai.checkpoints.io.adapter_files import is_adapter_folder, read_config
from moai.checkpoints.io.lookup import find_checkpoint
from moai.models.registry import MODEL_SPECS, ModelSpec, find_spec
from verbalizers.core.durable_files import atomic_file

__all__ = ["find_start", "find_trained_spec", "write_command"]

#: How a run was started.
COMMAND_FILE = "command.txt"


def write_command(folder: Path, recipe: Any, overrides: Sequence[str]) -> None:
    """Say in a run's folder how it was started, for whoever goes on with it; a recipe that is no file has no command.

    Args:
        folder: Of the run.
        recipe: As it was given.
        overrides: ``key=value`` words laid over it.
    """
    if isinstance(recipe, str | Path):
        with atomic_file(folder / COMMAND_FILE) as temporary:
            command = shlex.join(["moai", "train", "--config", str(recipe), *overrides])
            temporary.write_text(command + "\n", encoding="utf-8")


def find_start(name_or_path: str) -> str:
    """Absolute folder of a checkpoint or of an earlier stage's output; a hub name stays as it is.

    Args:
        name_or_path: What ``model.path`` says; the output folder of a run stands for its ``final`` folder.

    Raises:
        ValueError: There is no such checkpoint, or the earlier stage has not finished.
    """
    folder = Path(name_or_path).expanduser()
    final = folder / "final"
    if is_adapter_folder(final) or (final / "config.json").is_file():
        folder = final
    run = folder.parent if folder.name == "final" else folder
    if run.is_dir() and not (run / "final").is_dir() and _is_begun(run):
        file = run / COMMAND_FILE
        command = f" with: {file.read_text(encoding='utf-8').strip()}" if file.is_file() else " with its command."
        raise ValueError(
            f"expected the result of an earlier stage in {run / 'final'}, got none: that run has not finished. It goes "
            f"on{command}"
        )
    if is_adapter_folder(folder):
        return str(folder.resolve())
    found = find_checkpoint(str(folder) if folder.is_dir() else name_or_path)
    return str(Path(found).resolve()) if Path(found).is_dir() else found


def _is_begun(run: Path) -> bool:
    """Whether a folder is the output of a run, finished or not."""
    return any((run / name).exists() for name in (COMMAND_FILE, "checkpoints", "log.jsonl"))


def find_trained_spec(path: str | None, model_type: str | None) -> tuple[ModelSpec, str | None]:
    """The spec of the model that a recipe names, and its model type.

    Args:
        path: What ``model.path`` says; None = a new model. One that is not there counts as a MoAI: that it is not
            there is told when it is needed.
        model_type: What ``model.type`` says; None = what the checkpoint says.

    Raises:
        ValueError: Such a model is not trained here, or the checkpoint is of another type.
    """
    found = None
    if path is not None:
        try:
            start = find_start(path)
        except ValueError:
            start = None
        is_told = model_type is not None and not Path(start or "").is_dir()  # a hub name's file need not be fetched now
        found = None if start is None or is_told else read_config(start).get("model_type")
    if None not in (found, model_type) and found != model_type:
        raise ValueError(f"expected a checkpoint of the `model.type` {model_type!r}, got {path}, which is a {found!r}.")
    spec = find_spec(path or "a new model", found or model_type)
    if spec.task is None or spec.settings is None:
        trained = ", ".join(known.model_type for known in MODEL_SPECS.values() if known.task is not None)
        raise ValueError(
            f"expected a model that is trained here ({trained}, or an image-text-to-text model of transformers), got a "
            f"{spec.model_type}."
        )
    return spec, found or model_type
