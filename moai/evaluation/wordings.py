"""Paraphrases: the same questions in other words than those a model was trained or tuned on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .questions import TestQuestion

__all__ = ["ParaphraseSet", "add_paraphrases"]

_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class ParaphraseSet:
    """Ways to ask one question.

    Attributes:
        pattern: Fits the question; its groups are the words of its slots.
        paraphrases: With slots of the same names.
    """

    pattern: re.Pattern[str]
    paraphrases: tuple[str, ...]

    def fill(self, question: str) -> list[str]:
        """The paraphrases of a question that fits; none of one that does not."""
        found = self.pattern.fullmatch(question.strip())
        if found is None:
            return []
        return [_SLOT.sub(lambda slot: found[slot[1]], text) for text in self.paraphrases]


def read_paraphrases(path: str | Path) -> list[ParaphraseSet]:
    """Read a JSONL file of ``{"question": "Is there a {name}?", "paraphrases": ["Can you see a {name}?", ...]}``.

    Raises:
        ValueError: The file cannot be read, or a line is no such object; the message names it.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"expected a JSONL file of paraphrases, got {str(path)!r} ({error}).") from error
    sets = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = json.loads(line)
                question, paraphrases = row["question"], row["paraphrases"]
                parts = _SLOT.split(question)
                slots = parts[1::2]
                if isinstance(paraphrases, str) or not paraphrases or len(set(slots)) < len(slots):
                    raise ValueError("expected a list of paraphrases, and slots of names of their own")
                if unknown := {slot for text in paraphrases for slot in _SLOT.findall(text)} - set(slots):
                    raise ValueError(f"the question has no slot {sorted(unknown)}")
                regex = "".join(f"(?P<{part}>.+?)" if k % 2 else re.escape(part) for k, part in enumerate(parts))
                sets.append(ParaphraseSet(re.compile(regex, re.IGNORECASE), tuple(paraphrases)))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f'{path}:{number}: expected {{"question": ..., "paraphrases": [...]}}, got {error!r}.'
                ) from error
    return sets


def add_paraphrases(questions: Iterable[TestQuestion], sets: Sequence[ParaphraseSet]) -> Iterator[TestQuestion]:
    """Questions, each followed by its paraphrases; `wording` tells them apart.

    Args:
        questions: As a test asks them.
        sets: From :func:`read_paraphrases`; the first one that fits a question counts.
    """
    for question in questions:
        texts = next((texts for each in sets if (texts := each.fill(question.question))), [])
        yield replace(question, wording="original") if texts else question
        for number, text in enumerate(texts, start=1):
            yield replace(
                question, id=f"{question.id}~{number}", question=text, wording="paraphrase", said_as=question.id
            )
