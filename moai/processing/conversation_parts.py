"""Conversations as message lists: their texts are data, their images stand in reading order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .control_tokens import ControlTokenGuard

__all__ = ["escape_texts", "list_images"]


def escape_texts(value: Any, guard: ControlTokenGuard) -> Any:
    """Conversations whose texts cannot steer.

    Args:
        value: One or several conversations.
        guard: The tokenizer's.
    """
    if isinstance(value, (list, tuple)):
        return [escape_texts(item, guard) for item in value]
    if not isinstance(value, Mapping):
        return value
    message = dict(value)
    for key in ("content", "text"):
        if isinstance(message.get(key), str):
            message[key] = guard.escape(message[key])
        elif key in message:
            message[key] = escape_texts(message[key], guard)
    return message


def list_images(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Images of a conversation in reading order; a video's frames are images.

    Raises:
        ValueError: A part holds none.
    """
    parts = [part for m in messages if not isinstance(m["content"], str) for part in m["content"]]
    images: list[Any] = []
    for part in parts:
        if part["type"] == "video":
            images += part["video"]
        elif part["type"] == "image":
            source = next((part[key] for key in ("image", "url", "path") if part.get(key) is not None), None)
            if source is None and isinstance(part.get("base64"), str):
                source = "data:image;base64," + part["base64"]
            if source is None:
                raise ValueError(f"expected an image in {{'type': 'image', 'image': ...}}, got {sorted(part)}.")
            images.append(source)
    return images
