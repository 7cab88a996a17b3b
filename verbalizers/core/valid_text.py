"""Text from outside as valid Unicode. Needs nothing but Python, so that every folder may import it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["make_valid"]


def make_valid(value: Any) -> Any:
    """Text that UTF-8 can hold: each lone surrogate becomes U+FFFD, two that are a pair become their character.

    JSON may spell half a pair (a text cut between the two halves of an emoji), and words of a command line or file
    names may hold bytes that are no UTF-8; no tokenizer, no file and no terminal takes either. To be called once, where
    text enters.

    Args:
        value: Text, or what JSON holds: mappings and lists are gone through, keys too; anything else stays as it is.

    Returns:
        The same, in valid Unicode; what was valid is returned unchanged.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return value
    if isinstance(value, Mapping):
        return {make_valid(key): make_valid(item) for key, item in value.items()}
    if isinstance(value, list):
        return [make_valid(item) for item in value]
    return value
