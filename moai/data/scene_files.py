"""Scenes that somebody brings along, in a file or in a row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verbalizers import Scene
from verbalizers.core.valid_text import STRICT_JSON

__all__ = ["read_scene"]


def read_scene(source: str | Path | Mapping[str, Any]) -> Scene:
    """Read a scene: its dict form, or an object that holds one under ``scene`` (as
    ``moai verbalize --json`` writes).

    Raises:
        ValueError: The file cannot be read or does not hold a scene; the message names it.
    """
    name = "the given object" if isinstance(source, Mapping) else str(source)
    if not isinstance(source, Mapping) and Path(source).is_char_device():
        raise ValueError(f"expected a scene file, got the device {name!r}. Name a file.")
    try:
        data = (
            source if isinstance(source, Mapping) else STRICT_JSON.decode(Path(source).read_text(encoding="utf-8-sig"))
        )
        if isinstance(data, Mapping) and isinstance(data.get("scene"), Mapping):
            data = data["scene"]
        if not isinstance(data, Mapping):
            raise ValueError(f"expected a JSON object, got a {type(data).__name__}")
        return Scene.from_dict(data)
    except OSError as error:
        raise ValueError(f"expected a scene file, got {name!r} ({error.strerror}). Check the path.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error).removesuffix(".")
        raise ValueError(
            f"{name} is no scene: {reason}. Expected what Scene.to_dict() or `moai verbalize --json` writes."
        ) from error
