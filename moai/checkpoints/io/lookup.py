"""Where a checkpoint lies: a folder, a name that ships with MoAI, or a name on the Hugging Face hub."""

from __future__ import annotations

import json
import re
from pathlib import Path

from moai import bundled

__all__ = ["BUNDLED_FOLDER", "check_model_type", "find_checkpoint", "is_hub_name", "list_bundled_checkpoints"]

#: Checkpoints that ship with MoAI stand here, one folder each.
BUNDLED_FOLDER = bundled.FOLDER / "checkpoints"
ADAPTER_CONFIG = "adapter_config.json"
_HUB_NAME = re.compile(r"[\w.\-]+/[\w.\-]+")


def list_bundled_checkpoints() -> dict[str, Path]:
    """Names and folders of the checkpoints that ship with MoAI."""
    return {path.parent.name: path.parent for path in sorted(BUNDLED_FOLDER.glob("*/config.json"))}


def is_hub_name(text: str) -> bool:
    """Whether ``text`` has the form ``owner/name`` and means nothing on this disk.

    A folder that is there wins over a name on the hub; where only ``owner`` is a folder, the path was mistyped.
    """
    return bool(_HUB_NAME.fullmatch(text)) and not text.startswith(("./", "../")) and not Path(text).parent.is_dir()


def find_checkpoint(name_or_path: str | Path) -> str:
    """Turn what a user names as a model into what ``from_pretrained`` reads.

    Args:
        name_or_path: A folder, a bundled name (``"moai-nano"``) or a hub name (``"owner/name"``).

    Returns:
        The folder's path, or the hub name unchanged.

    Raises:
        ValueError: It is none of them, or a folder without ``config.json``.
    """
    text, folder = str(name_or_path), Path(name_or_path).expanduser()
    if (folder / "config.json").is_file() or (folder / ADAPTER_CONFIG).is_file():
        return str(folder)  # an adapter names its base model; transformers loads both
    shipped = list_bundled_checkpoints().get(text) or bundled.find_bundled("checkpoints", text)
    if shipped is not None and (shipped / "config.json").is_file():
        return str(shipped)
    if folder.is_dir():
        official = (
            " Official weights are turned into this format by `moai convert SRC OUT`." if any(folder.iterdir()) else ""
        )
        raise ValueError(f"expected a checkpoint folder with config.json, got {text!r} without one.{official}")
    if is_hub_name(text):
        return text
    known = ", ".join(list_bundled_checkpoints())
    raise ValueError(
        f"expected a checkpoint folder, a hub name (owner/name) or a bundled name ({known}), got {text!r}, "
        "which does not exist. Check the path."
    )


def check_model_type(name_or_path: str, revision: str | None = None) -> None:
    """Check that a checkpoint is a MoAI in this project's format, before anything large is fetched or loaded.

    Args:
        name_or_path: What :func:`find_checkpoint` gave.
        revision: Of a hub name.

    Raises:
        ValueError: It is another model, or MoAI's official format.
    """
    from transformers.utils import cached_file

    file = cached_file(name_or_path, "config.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    try:
        model_type = None if file is None else json.loads(Path(file).read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError):  # transformers says what is wrong with such a file
        return
    if model_type not in (None, "moai"):
        raise ValueError(
            f"expected a MoAI checkpoint, got {name_or_path!r} with model_type {model_type!r}. Official weights are "
            f"turned into this format by `moai convert {name_or_path} OUT`."
        )
