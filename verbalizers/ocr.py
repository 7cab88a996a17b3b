"""Reading text: its words."""

from __future__ import annotations

import numpy as np

from verbalizers.structures import TextLines
from verbalizers.words import TEXTS_OPENING, WordSettings, list_sentence, without_control_characters

__all__ = ["verbalize_text_lines"]


def verbalize_text_lines(
    text_lines: TextLines | None, threshold: float = WordSettings.text_threshold, compat: bool = False
) -> str:
    """`The image includes text descriptions: t1, and t2.`, lines in the order given.

    Args:
        text_lines: None gives "".
        threshold: lowest confidence that is said.
        compat: leave blank lines and control characters in, as the release does.
    """
    if text_lines is None:
        return ""
    is_kept = text_lines.confidence >= np.float32(threshold)
    texts = [text for text, keep in zip(text_lines.texts, is_kept, strict=True) if keep]
    if not compat:
        texts = [without_control_characters(text) for text in texts if text.strip()]
    return list_sentence(TEXTS_OPENING, texts)
