"""The line between prompt and data: control tokens inside a user's or OCR text stay text.

A prompt is one string in which the template's control tokens steer and the user's must not. `escape` puts a break
mark (a Unicode noncharacter, which no text may contain) inside every control literal of a piece of data; `encode`
encodes what lies between marks separately and joins the ids. The mark never becomes a token, the text survives
unchanged, and no control id can arise. Text without control literals, i.e. nearly all text, is not touched at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from verbalizers.core.valid_text import make_valid

#: Noncharacter U+FDD0: "permanently reserved for internal use" (The Unicode Standard, section 23.7).
BREAK_MARK = "\ufdd0"


class ControlTokenGuard:
    """Escapes data and encodes prompts for one tokenizer (any Hugging Face tokenizer).

    Args:
        tokenizer: The tokenizer.
        extra_literals: More literals that steer: the image placeholder, turn headers spelt in plain words.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, extra_literals: Iterable[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.extra_literals = tuple(extra_literals)

    @cached_property
    def literals(self) -> frozenset[str]:
        """Every literal that steers. Whitespace tokens (InternLM2 and Gemma define a newline token) are text."""
        added = {token.content for token in self.tokenizer.added_tokens_decoder.values()}
        own = getattr(self.tokenizer, "control_tokens", frozenset())
        known = {*added, *own, *self.tokenizer.all_special_tokens, *self.extra_literals}
        return frozenset(literal for literal in known if literal.strip())

    @cached_property
    def forbidden_ids(self) -> frozenset[int]:
        """Ids that must not come out of data. The unknown token is no control token: odd characters give it."""
        ids = {self.tokenizer.convert_tokens_to_ids(literal) for literal in self.literals}
        return frozenset(ids - {None, self.tokenizer.unk_token_id})

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.literals, key=len, reverse=True)
        # A lookahead consumes nothing, so overlapping literals are all found.
        return re.compile("(?=" + "|".join(map(re.escape, longest_first)) + ")" if longest_first else "(?!)")

    def escape(self, text: str) -> str:
        """Mark every control literal in data.

        Args:
            text: User text, OCR text, an answer: anything that must not steer.

        Returns:
            The same text with a break mark after the first character of each control literal.

        Raises:
            ValueError: The tokenizer makes a control token out of single characters, so it cannot be kept out.
        """
        return self._escape(text)[0]

    def encode_data(self, text: str) -> list[int]:
        """Ids of data, without BOS or EOS: what :meth:`encode` makes of the escaped text.

        Args:
            text: User text, OCR text: anything that must not steer.

        Raises:
            ValueError: As :meth:`escape`.
        """
        return self._escape(text)[1]

    def _escape(self, text: str) -> tuple[str, list[int]]:
        """The escaped text, and the ids that show it to be harmless."""
        text = make_valid(text).replace(BREAK_MARK, "")
        cuts = [match.start() + 1 for match in self._pattern.finditer(text)]
        escaped = BREAK_MARK.join(text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True))
        ids = self.encode(escaped)
        if self.forbidden_ids.isdisjoint(ids):
            return escaped, ids
        # A normaliser (full-width letters, ligatures) can form a literal that the text does not spell.
        escaped = BREAK_MARK.join(text)
        ids = self.encode(escaped)
        found = self.forbidden_ids.intersection(ids)
        if found:
            names = self.tokenizer.convert_ids_to_tokens(sorted(found))
            raise ValueError(f"expected text, got characters that this tokenizer reads as {names}. Remove them.")
        return escaped, ids

    def encode(self, text: str) -> list[int]:
        """Encode a prompt without BOS or EOS; break marks separate and vanish."""
        first, *rest = text.split(BREAK_MARK)
        ids = self._encode_plain(first)
        for piece in rest:
            ids += self.encode_continuation(piece)
        return ids

    def encode_continuation(self, text: str) -> list[int]:
        """Encode text that follows other text: without the space some sentencepiece models put in front."""
        if not text:
            return []
        first, *rest = text.split(BREAK_MARK)
        newline, ids = self._newline_ids, self._encode_plain("\n" + first)
        ids = ids[len(newline) :] if ids[: len(newline)] == newline else self._encode_plain(first)
        for piece in rest:
            ids += self.encode_continuation(piece)
        return ids

    @cached_property
    def _newline_ids(self) -> list[int]:
        return self._encode_plain("\n")

    def _encode_plain(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False)) if text else []

    @cached_property
    def prefix_ids(self) -> list[int]:
        """What the tokenizer puts in front of every sequence (BOS, or nothing)."""
        ids = list(self.tokenizer.encode("", add_special_tokens=True))
        eos = self.tokenizer.eos_token_id
        return ids[:-1] if len(ids) > 1 and ids[-1] == eos or ids == [eos] else ids
