"""Rows of one ``generate`` that stream, sample, stop and end each by its own settings.

A batch shares one greedy ``generate``; :class:`RowSampler` chooses the token of a row that samples and :class:`RowStop`
reads what was chosen. So requests share a batch whatever they ask for, and one that is called off ends alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria

from ..models.confidence import confidence_of

__all__ = ["AnswerRow", "BeamStop", "RowSampler", "RowStop", "RowTokens", "TokenChoice", "follow_sequences"]


@dataclass(frozen=True)
class TokenChoice:
    """A chosen token with its log-probability, before temperature.

    Attributes:
        token: Its text.
        logprob: Its natural log-probability.
        likeliest: The likeliest tokens in its place with theirs, likeliest first.
    """

    token: str
    logprob: float
    likeliest: tuple[tuple[str, float], ...]


@dataclass(eq=False)
class AnswerRow:
    """How one answer of a batch is generated, and what has been generated of it.

    Attributes:
        max_new_tokens: Longest answer in tokens.
        stops: Strings that end the answer and do not belong to it.
        temperature: 0 = the likeliest token.
        top_p: Share of probability that is sampled from.
        seed: Of the sampling; None = by chance.
        num_beams: Width of a beam search, equal for the rows of a batch; above 1 the text comes at the end, and nothing
            is sampled or noted.
        num_likeliest: How many likely tokens ``choices`` names beside each one chosen; None = no choices are kept.
        on_text: Called, in the thread that generates, with each further piece of the answer.
        on_end: Called there once, when the row has ended; the batch may go on.
        text: The answer so far, without what may yet turn out to be a stop.
        choices: The tokens chosen.
        log_probabilities: Of all tokens chosen, the end's too, before temperature.
        num_prompt_tokens: Length of the prompt.
        num_tokens: Length of the answer.
        finish_reason: "stop", "length" or "cancelled"; None = it goes on.
        confidence: Of an answer that has ended: :func:`moai.models.confidence.confidence_of`.
        is_cancelled: Whether :meth:`cancel` was called.
    """

    max_new_tokens: int
    stops: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    num_beams: int = 1
    num_likeliest: int | None = None
    on_text: Callable[[str], None] | None = None
    on_end: Callable[[], None] | None = None
    text: str = ""
    choices: list[TokenChoice] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    finish_reason: str | None = None
    confidence: float | None = None
    is_cancelled: bool = False

    def restart(self) -> None:
        """Forget what has been generated."""
        self.text, self.num_tokens, self.finish_reason = "", 0, None
        self.choices, self.log_probabilities = [], []

    def cancel(self) -> None:
        """End the answer at its next token; may be called from any thread."""
        self.is_cancelled = True

    def extend(self, text: str) -> None:
        """Hand on further text."""
        if text:
            self.text += text
            if self.on_text is not None:
                self.on_text(text)

    def end(self, reason: str) -> None:
        """Note why the answer has ended."""
        self.finish_reason, self.confidence = reason, confidence_of(self.log_probabilities)
        if self.on_end is not None:
            self.on_end()


class RowTokens:
    """Turns the tokens of a row into text as they come.

    Args:
        row: The row.
        tokenizer: Decodes.
        stops: Strings that end the answer.
        finish: Makes the answer of the whole text.
        is_streaming: Whether ``finish`` only takes off the end, so that text can be handed on before it.
    """

    def __init__(
        self,
        row: AnswerRow,
        tokenizer: Any,
        stops: Sequence[str],
        finish: Callable[[str], str] = str.strip,
        is_streaming: bool = True,
    ) -> None:
        self.row, self._tokenizer, self._stops = row, tokenizer, tuple(stops)
        self._finish, self._is_streaming = finish, is_streaming
        self._ids: list[int] = []

    def add(self, token: int, is_last: bool) -> None:
        """Take a token, or the end where ``is_last``."""
        row = self.row
        if row.is_cancelled:
            row.end("cancelled")
            return
        row.num_tokens += 1
        if not is_last:
            self._ids.append(token)
        # All of it, not the token alone: how a token reads may depend on those in front of it.
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True).lstrip()
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places or is_last or row.num_tokens >= row.max_new_tokens:
            row.extend(self._finish(text[: min(places, default=None)])[len(row.text) :])
            row.end("stop" if places or is_last else "length")
        elif self._is_streaming:
            row.extend(text[: self._count_sure(text)][len(row.text) :])

    def _count_sure(self, text: str) -> int:
        """Characters that no further token changes or takes back: no half character, no white space at the end, no
        beginning of a stop.
        """
        sure = len(text.rstrip("\ufffd"))
        for stop in self._stops:
            longest = min(len(stop) - 1, len(text))
            begun = next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
            sure = min(sure, len(text) - begun)
        return len(text[:sure].rstrip())


class RowStop(StoppingCriteria):
    """Ends each row by itself.

    Args:
        tokens: One per row.
        end_ids: Tokens that end an answer.
    """

    def __init__(self, tokens: Sequence[RowTokens], end_ids: Collection[int]) -> None:
        self._tokens, self._end_ids = tokens, frozenset(end_ids)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Read the newest token of every row ``(B, L)``; which rows ``(B,)`` have ended."""
        for tokens, token in zip(self._tokens, input_ids[:, -1].tolist(), strict=True):
            if tokens.row.finish_reason is None:
                tokens.add(token, token in self._end_ids)
        ended = [tokens.row.finish_reason is not None for tokens in self._tokens]
        return torch.tensor(ended, device=input_ids.device)


class BeamStop(StoppingCriteria):
    """Ends a beam search that nobody waits for.

    Args:
        rows: Of the batch.
    """

    def __init__(self, rows: Sequence[AnswerRow]) -> None:
        self._rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """All beams ``(B * beams,)`` of the batch, or none."""
        is_over = all(row.is_cancelled for row in self._rows)
        return torch.full((len(input_ids),), is_over, device=input_ids.device)


def follow_sequences(
    tokens: Sequence[RowTokens],
    end_ids: Collection[int],
    sequences: torch.Tensor,
    log_probabilities: Sequence[Sequence[float]],
) -> None:
    """Read what a beam search has found as if it came token by token.

    Args:
        tokens: One per row.
        end_ids: Tokens that end an answer.
        sequences: ``(B, T)`` new tokens, padded on the right.
        log_probabilities: Of each row's tokens, up to its end.
    """
    for each, ids, chosen in zip(tokens, sequences.tolist(), log_probabilities, strict=True):
        for token, value in zip_longest(ids, chosen):
            if each.row.finish_reason is None:
                each.row.log_probabilities += () if value is None else (value,)
                each.add(token, token in end_ids)


class RowSampler(LogitsProcessor):
    """Chooses the tokens of rows that sample, each from its own seed, and notes what was chosen.

    Args:
        rows: One per row of the batch.
        tokenizer: Decodes tokens that are noted.
        end_ids: Tokens that end an answer: they are not noted.
    """

    def __init__(self, rows: Sequence[AnswerRow], tokenizer: Any, end_ids: Collection[int]) -> None:
        self._rows, self._tokenizer, self._end_ids = rows, tokenizer, frozenset(end_ids)
        self._generators = [_build_generator(row) for row in rows]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Leave one token of each sampling row possible; scores are ``(B, V)`` float32."""
        for index, (row, generator) in enumerate(zip(self._rows, self._generators, strict=True)):
            if row.finish_reason is not None:
                continue
            logits = scores[index].float()
            token = int(logits.argmax()) if generator is None else _sample(logits, row, generator)
            logprobs = logits.log_softmax(dim=-1)
            row.log_probabilities.append(float(logprobs[token]))
            if row.num_likeliest is not None and token not in self._end_ids:
                row.choices.append(self._describe(token, logprobs, row.num_likeliest))
            if generator is not None:
                scores[index] = -torch.inf
                scores[index, token] = 0.0
        return scores

    def _describe(self, token: int, logprobs: torch.Tensor, num_likeliest: int) -> TokenChoice:
        best = logprobs.topk(num_likeliest)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        likeliest = tuple((self._tokenizer.decode([each]), value) for each, value in pairs)
        return TokenChoice(self._tokenizer.decode([token]), float(logprobs[token]), likeliest)


def _build_generator(row: AnswerRow) -> torch.Generator | None:
    """The random numbers of a row that samples, on the CPU: the same on every device."""
    if row.temperature <= 0:
        return None
    seed = random.getrandbits(63) if row.seed is None else row.seed % 2**63
    return torch.Generator().manual_seed(seed)


def _sample(logits: torch.Tensor, row: AnswerRow, generator: torch.Generator) -> int:
    """A token of the smallest set of likeliest tokens whose probability reaches ``top_p``."""
    logits = logits.double().cpu()
    probabilities = ((logits - logits.max()) / row.temperature).softmax(dim=-1)
    if row.top_p < 1:
        ordered, places = probabilities.sort(descending=True)
        dropped = ordered.cumsum(dim=-1) - ordered >= row.top_p
        dropped[0] = False
        probabilities[places[dropped]] = 0.0
    return int(torch.multinomial(probabilities, 1, generator=generator))
