"""Contents of a checkpoint as hashes of its files: whether two are the same, and which file differs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from .lookup import is_hub_name

__all__ = ["hash_checkpoint"]

_SUFFIXES = (".safetensors", ".bin", ".gguf", ".json", ".model", ".jinja", ".txt")
#: They decide no weight, no token and no pixel; who verbalizes is told by the data.
_LEFT_OUT = ("verbalizers.json", "generation_config.json", "evaluation")


def hash_checkpoint(
    name_or_path: str | Path, show: Callable[[Sequence[str]], Iterable[str]] = iter
) -> dict[str, str]:
    """SHA-256 of each file of a checkpoint that decides what it computes: weights, configuration, tokenizer, template.

    Args:
        name_or_path: A folder, a file (GGUF), or a hub name whose files have been fetched.
        show: Is handed the files' names and gives them back one by one, to show how far it is.

    Returns:
        File name -> 64 hexadecimal digits; empty where nothing lies on this disk.
    """
    place = Path(name_or_path).expanduser()
    if not place.exists() and is_hub_name(str(name_or_path)):
        from transformers.utils import cached_file

        options = {"local_files_only": True, "_raise_exceptions_for_missing_entries": False}
        found = cached_file(str(name_or_path), "config.json", _raise_exceptions_for_connection_errors=False, **options)
        place = Path(found).parent if found else place
    if place.is_file():
        return {place.name: _hash_file(place)}
    files = [path for path in place.rglob("*") if path.is_file() and path.suffix in _SUFFIXES]
    named = {path.relative_to(place).as_posix(): path for path in files}
    return {name: _hash_file(named[name]) for name in show(sorted(filter(_counts, named)))}


def _counts(name: str) -> bool:
    """Whether a file decides something; sub-folders of chat templates do, verbalizers inside the checkpoint do not."""
    folder, _, file = name.rpartition("/")
    return not file.startswith(_LEFT_OUT) and folder in ("", "additional_chat_templates")


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
