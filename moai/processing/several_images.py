"""Several images of one prompt: where they stand, and what was found in them as one text and one map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["insert_images", "join_maps", "join_texts"]


def insert_images(messages: Sequence[Mapping[str, Any]], images: Sequence[Any]) -> list[dict[str, Any]]:
    """Messages of transformers whose parts ``{"type": "image"}`` hold the images, in reading order.

    Raises:
        ValueError: There are more or fewer images than places.
    """
    filled, rest = [], list(images)
    for message in messages:
        parts = [dict(part) for part in message["content"]]
        for part in parts:
            if part["type"] == "image" and rest:
                part["image"] = rest.pop(0)
        filled.append({**message, "content": parts})
    num_empty = sum(
        part["type"] == "image" and "image" not in part for message in filled for part in message["content"]
    )
    if rest or num_empty:
        raise ValueError(f"expected a place for each image, got {len(rest)} images too many and {num_empty} too few.")
    return filled


def join_texts(texts: Sequence[str]) -> str:
    """Texts about images in reading order: one as it is, several numbered, empty ones left out."""
    if len(texts) == 1:
        return texts[0]
    return " ".join(f"Picture {number}: {text}" for number, text in enumerate(texts, start=1) if text)


def join_maps(maps: Sequence[np.ndarray]) -> np.ndarray:
    """Maps of images ``(H, W, 3)`` uint8 side by side, scaled to the height of the tallest."""
    if len(maps) == 1:
        return maps[0]
    height = max(painted.shape[0] for painted in maps)
    scaled = [Image.fromarray(painted).resize((painted.shape[1], height), Image.Resampling.NEAREST) for painted in maps]
    return np.concatenate([np.asarray(painted) for painted in scaled], axis=1)
