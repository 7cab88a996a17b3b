"""Where a checkpoint lies: a folder, a name that ships with MoAI, or a name on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from moai import bundled

__all__ = ["BUNDLED_FOLDER", "find_checkpoint", "is_hub_name", "list_bundled_checkpoints"]

#: Checkpoints that ship with MoAI stand here, one folder each.
BUNDLED_FOLDER = bundled.FOLDER / "checkpoints"
ADAPTER_CONFIG = "adapter_config.json"
_HUB_NAME = re.compile(r"[\w.\-]+/[\w.\-]+")


def _is_checkpoint(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / ADAPTER_CONFIG).is_file()


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
    if _is_checkpoint(folder):
        return str(folder)  # an adapter names its base model; transformers loads both
    shipped = list_bundled_checkpoints().get(text) or bundled.find_bundled("checkpoints", text)
    if shipped is not None and (shipped / "config.json").is_file():
        return str(shipped)
    if folder.is_dir():
        next_step = ""
        if _is_checkpoint(folder / "final"):
            next_step = f" The training there wrote its result to {str(folder / 'final')!r}: name that."
        elif any(folder.iterdir()):
            next_step = " Official weights are turned into this format by `moai convert SRC OUT`."
        raise ValueError(f"expected a checkpoint folder with config.json, got {text!r} without one.{next_step}")
    if is_hub_name(text):
        return text
    known = ", ".join(list_bundled_checkpoints())
    raise ValueError(
        f"expected a checkpoint folder, a hub name (owner/name) or a bundled name ({known}), got {text!r}, "
        "which does not exist. Check the path."
    )
