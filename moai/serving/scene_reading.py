"""Scenes that clients bring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verbalizers import Scene
from verbalizers.core.valid_text import make_valid

__all__ = ["read_scene"]


def read_scene(data: Mapping[str, Any], max_pixels: int | None) -> Scene:
    """A scene that a client brings.

    Args:
        data: As :meth:`Scene.to_dict` writes it.
        max_pixels: Of its image: a map is as large, however short it is written.

    Raises:
        ValueError: It is none.
    """
    try:
        height, width = data["image_size_hw"]
        if max_pixels is not None and not 0 < height * width <= max_pixels:
            raise ValueError(f"its image has more than {max_pixels} pixels")
        runs = (data.get("segments") or {}).get("panoptic_map")
        if isinstance(runs, Mapping) and list(runs.get("image_size_hw", ())) != [height, width]:
            raise ValueError("its map is of another size than its image")
        return Scene.from_dict(make_valid(data))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError, MemoryError) as error:
        raise ValueError(f"expected a scene as the server writes one, got another: {str(error)[:300]}") from error
