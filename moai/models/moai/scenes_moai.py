"""Scenes as MoAI reads them: text for the compressor, and the painted panoptic map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from verbalizers.core.segmentation_map import render_segmentation_map
from verbalizers.core.sentences import verbalize_scene
from verbalizers.core.structures import Scene
from verbalizers.core.words import WordSettings

__all__ = ["encode_scenes"]


def encode_scenes(
    scenes: Sequence[Scene | None],
    words: WordSettings | None = None,
    kinds: Sequence[str] | None = None,
    compat: bool = False,
    map_mode: str = "found",
) -> dict[str, list[Any]]:
    """What a :class:`~moai.MoAIProcessor` takes beside images and prompts.

    Args:
        scenes: One per prompt; None = nobody looked.
        words: What is worth saying; None = the defaults.
        kinds: Which kinds are said, in this order; None = all that the scene holds.
        compat: The released code's very words.
        map_mode: When the map is given: "found" where there are segments, "always" (black where there are none, as the
            release does), or "never".

    Returns:
        ``auxiliary_text``, one text per prompt, and ``auxiliary_images``, one map ``(H, W, 3)`` uint8 per prompt; None
        where nobody looked, and where no map is given.
    """
    texts, maps = [], []
    for scene in scenes:
        texts.append(None if scene is None else verbalize_scene(scene, kinds, compat, words))
        has_map = scene is not None and (map_mode == "always" or (map_mode == "found" and scene.segments is not None))
        maps.append(render_segmentation_map(scene.segments, scene.image_size_hw) if has_map else None)
    return {"auxiliary_text": texts, "auxiliary_images": maps}
