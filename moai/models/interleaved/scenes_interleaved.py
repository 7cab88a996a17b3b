"""Scenes as Emu and Flamingo read them: sentences between an image and the question about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from verbalizers.core.sentences import verbalize_scene
from verbalizers.core.structures import Scene
from verbalizers.core.words import WordSettings

__all__ = ["encode_scenes"]


def encode_scenes(
    scenes: Sequence[Scene | None], words: WordSettings | None = None, kinds: Iterable[str] | None = None
) -> dict[str, list[str | None]]:
    """What :meth:`.InterleavedProcessor.build_conversation` takes beside image and question.

    Args:
        scenes: One per question; None = nobody looked.
        words: What is worth saying; None = the defaults.
        kinds: Which kinds are said, in this order; None = all that the scene holds.

    Returns:
        ``context``, a text per question, None where nobody looked.
    """
    kinds = None if kinds is None else list(kinds)
    return {"context": [None if s is None else verbalize_scene(s, kinds, settings=words) for s in scenes]}
