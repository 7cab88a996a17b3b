"""Character offsets of tokens in their prompt (for transformers' assistant masks)."""

from __future__ import annotations

import re
from typing import Any

from ...processing.control_tokens import BREAK_MARK, ControlTokenGuard

Span = tuple[int, int]


def can_locate_tokens(tokenizer: Any) -> bool:
    """Whether a tokenizer tells where its tokens stand in a text."""
    return tokenizer.is_fast or hasattr(tokenizer, "encode_with_offsets")


def locate_tokens(guard: ControlTokenGuard, text: str) -> list[Span]:
    """Find the characters of every id that `guard.encode(text)` gives.

    Args:
        guard: The tokenizer with its line between prompt and data.
        text: A rendered prompt; its break marks are characters of it, as for `apply_chat_template`.

    Returns:
        Start and end of each token.

    Raises:
        ValueError: The tokenizer cannot tell (those of the tokenizers library and :class:`InternLM2Tokenizer` can).
    """
    if not can_locate_tokens(guard.tokenizer):
        raise ValueError(
            f"`return_offsets_mapping` needs a fast tokenizer, got {type(guard.tokenizer).__name__}. Load one with "
            "AutoTokenizer, or leave offsets (and `return_assistant_tokens_mask`) out."
        )
    spans: list[Span] = []
    start = 0
    for index, piece in enumerate(text.split(BREAK_MARK)):
        if piece:
            # As `encode_continuation`: a line break in front keeps sentencepiece models from inserting a space.
            lead = "\n" if index else ""
            if guard.tokenizer.is_fast:
                settings = {"add_special_tokens": False, "return_offsets_mapping": True}
                found = guard.tokenizer(lead + piece, **settings)["offset_mapping"]
            else:
                _, found = guard.tokenizer.encode_with_offsets(lead + piece)
            skipped = len(guard.encode(lead)) if lead else 0
            spans += [
                (max(0, begin - len(lead)) + start, max(0, end - len(lead)) + start) for begin, end in found[skipped:]
            ]
        start += len(piece) + len(BREAK_MARK)
    return spans


def expand_placeholders(ids: list[int], spans: list[Span], image_token_id: int, num_image_tokens: int) -> list[Span]:
    """Spans after each placeholder became `num_image_tokens` of them, side by side."""
    expanded: list[Span] = []
    shift = 0
    for token, (start, end) in zip(ids, spans, strict=True):
        count, width = (num_image_tokens if token == image_token_id else 1), end - start
        expanded += [(start + shift + width * index, end + shift + width * index) for index in range(count)]
        shift += width * (count - 1)
    return expanded


def locate_replacements(text: str, image_token: str, num_image_tokens: int) -> list[dict[str, Any]]:
    """Locate the expanded placeholders of a prompt, in transformers' form.

    Args:
        text: A rendered prompt.
        image_token: The placeholder; one broken by a mark is data and does not count.
        num_image_tokens: How many of them stand for one image.

    Returns:
        Per placeholder `type`, `span` in `text`, `new_span` in the expanded text, `text` and `replacement`.
    """
    replacement = image_token * num_image_tokens
    found = []
    for index, match in enumerate(re.finditer(re.escape(image_token), text)):
        start = match.start() + index * (len(replacement) - len(image_token))
        found.append(
            {
                "type": "image",
                "span": match.span(),
                "new_span": (start, start + len(replacement)),
                "text": image_token,
                "replacement": replacement,
            }
        )
    return found


__all__ = ["can_locate_tokens", "expand_placeholders", "locate_replacements", "locate_tokens"]
