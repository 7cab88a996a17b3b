"""Confidence of an answer, from the probabilities that its model gave to the tokens that were chosen."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria

__all__ = ["DEFAULT_CONFIDENCE_THRESHOLD", "TokenRecorder", "confidence_of", "confidence_of_choice"]

#: Below it an answer is told to be unsure, where the checkpoint's ``config.json`` has no ``confidence_threshold``.
DEFAULT_CONFIDENCE_THRESHOLD = 0.5
#: Longest answer in tokens whose confidence is its whole probability. That of a paragraph is next to nothing.
_SHORT = 24


def confidence_of(log_probabilities: Sequence[float]) -> float | None:
    """Confidence of an answer: the probability of all its tokens, the end included; of a long one their mean.

    Args:
        log_probabilities: Of each token, as the model gave it, before temperature; empty = nothing was said.

    Returns:
        A probability: the product up to 24 tokens, the geometric mean of more; None for no token.
    """
    if not log_probabilities:
        return None
    total = math.fsum(log_probabilities)
    return math.exp(min(0.0, total if len(log_probabilities) <= _SHORT else total / len(log_probabilities)))


def confidence_of_choice(log_probabilities: Iterable[float]) -> float:
    """Confidence of the likeliest of some answers: its share of the probability that the model gives to all of them."""
    scores = torch.tensor(list(log_probabilities), dtype=torch.float64)
    return float(scores.softmax(dim=0).max())


@dataclass(frozen=True)
class _Path:
    """Tokens of a row that may become its answer, as far as they have been chosen."""

    log_probabilities: tuple[float, ...] = ()
    is_ended: bool = False


class TokenRecorder:
    """Notes the probability of each token that ``generate`` chooses: greedily, by chance, with beams or with a draft.

    Its ``processor`` sees what tokens are chosen from, before temperature and the like, its ``criterion`` what was
    chosen. It keeps the scores of one step; the tokens themselves tell which beam goes on from which.

    Args:
        num_rows: Rows of the batch.
        num_prompt_tokens: Length of the prompts, padding included.
        end_ids: Tokens that end an answer.
        criteria: The caller's own, which end rows too.
    """

    def __init__(
        self,
        num_rows: int,
        num_prompt_tokens: int,
        end_ids: Collection[int],
        criteria: Sequence[StoppingCriteria] = (),
    ) -> None:
        self._num_rows, self._num_prompt_tokens, self._end_ids = num_rows, num_prompt_tokens, frozenset(end_ids)
        self._criteria = list(criteria)
        self._paths: dict[tuple[int, ...], _Path] = {(row,): _Path() for row in range(num_rows)}
        self._scores: dict[tuple[int, ...], torch.Tensor] = {}
        self.processor, self.criterion = _Processor(self), _Criterion(self)

    def note_scores(self, input_ids: torch.Tensor, scores: torch.Tensor) -> None:
        """Keep what the next tokens are chosen from; scores are ``(B or beams, V)``."""
        self._scores |= zip(self._keys(input_ids), scores.float().log_softmax(dim=-1), strict=True)

    def note_tokens(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Read what was chosen; which rows the caller's criteria end, bool ``(B or candidates,)``."""
        keys = self._keys(input_ids)
        paths = [self._follow(key) for key in keys]
        is_done = torch.zeros(len(keys), dtype=torch.bool, device=input_ids.device)
        for criterion in self._criteria:
            is_done = is_done | criterion(input_ids, scores, **kwargs)
        going_on = {key: path for key, path in self._paths.items() if path.is_ended}
        for key, path, is_ended in zip(keys, paths, is_done.tolist(), strict=True):
            if path is not None:
                going_on[key] = _Path(path.log_probabilities, is_ended or key[-1] in self._end_ids)
        self._paths, self._scores = going_on, {}
        return is_done

    def read(self, sequences: torch.Tensor) -> list[tuple[float, ...]]:
        """Log-probabilities of the tokens of each row's answer, its end included.

        Args:
            sequences: ``(B, L)``, one per row, as ``generate`` returns them.
        """
        found = []
        for key in self._keys(sequences):
            while len(key) > 1 and key not in self._paths:
                key = key[:-1]  # padding behind the end
            found.append(self._paths[key].log_probabilities if key in self._paths else ())
        return found

    def _keys(self, input_ids: torch.Tensor) -> list[tuple[int, ...]]:
        """The place in the batch and the new tokens of each row; beams of a row stand side by side."""
        per_row = len(input_ids) // self._num_rows
        new = input_ids[:, self._num_prompt_tokens :].tolist()
        return [(index // per_row, *tokens) for index, tokens in enumerate(new)]

    def _follow(self, key: tuple[int, ...]) -> _Path | None:
        """The path to these tokens from what was known before; None behind an end."""
        length = len(key)
        while length and key[:length] not in self._paths:  # of a draft several are new at once
            length -= 1
        if not length or self._paths[key[:length]].is_ended:
            return None
        known = self._paths[key[:length]].log_probabilities
        new = [float(self._scores[key[:place]][key[place]]) for place in range(length, len(key))]
        return _Path((*known, *new))


class _Processor(LogitsProcessor):
    def __init__(self, recorder: TokenRecorder) -> None:
        self._recorder = recorder

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._recorder.note_scores(input_ids, scores)
        return scores


class _Criterion(StoppingCriteria):
    def __init__(self, recorder: TokenRecorder) -> None:
        self._recorder = recorder

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return self._recorder.note_tokens(input_ids, scores, **kwargs)
