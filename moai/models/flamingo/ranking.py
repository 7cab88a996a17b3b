"""Classification: which of some given answers the model finds likeliest; the prompt is read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .. import ranking

__all__ = ["rank_continuations"]


def rank_continuations(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    continuations: Sequence[Sequence[int]],
    normalize_length: bool = False,
) -> torch.Tensor:
    """Log-probabilities of continuations, which look where their prompt's last token does.

    See :func:`moai.models.ranking.rank_continuations`.
    """

    def carry(prompt: Any, num_tokens: int) -> dict[str, torch.Tensor]:
        if prompt.media_states is None:
            return {}
        more = {
            "media_states": prompt.media_states,
            "media_times": prompt.media_times[:, -1:].expand(-1, num_tokens),
        }
        return more | ({"media_mask": inputs["media_mask"]} if inputs.get("media_mask") is not None else {})

    return ranking.rank_continuations(model, inputs, continuations, normalize_length, carry)
