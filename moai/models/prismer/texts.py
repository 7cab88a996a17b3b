"""Texts as Prismer was trained to read and write them."""

from __future__ import annotations

import re

__all__ = ["CAPTION_PREFIX", "clean_text", "close_caption", "complete_question"]

#: What captions of COCO begin with.
CAPTION_PREFIX = "A picture of"
_MARKS = re.compile(r"[.!\"()*#:;~]")


def clean_text(text: str, max_words: int | None = None) -> str:
    """The first letter large, all others small, without some marks.

    Args:
        text: A caption with its prefix, or a question.
        max_words: Words that are kept; None = all. The original keeps 30 in training.
    """
    words = _MARKS.sub(" ", text.capitalize()).split()
    return " ".join(words if max_words is None else words[:max_words])


def complete_question(question: str) -> str:
    """A question, cleaned, with its question mark."""
    cleaned = clean_text(question)
    return cleaned if cleaned.endswith("?") else cleaned + "?"


def close_caption(caption: str) -> str:
    """What was generated behind the prefix as a sentence."""
    caption = caption.strip().capitalize()
    return caption + "." if caption else caption
