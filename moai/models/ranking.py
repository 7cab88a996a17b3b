"""Classification: which of some given answers the model finds likeliest; the prompt is read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch.nn import functional as F

from .cache_names import as_keyword, read_cache

__all__ = ["rank_continuations"]


@torch.inference_mode()
def rank_continuations(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    continuations: Sequence[Sequence[int]],
    normalize_length: bool = False,
) -> torch.Tensor:
    """Log-probabilities of continuations of prompts.

    Args:
        model: A causal model with a cache. One whose tokens behind a prompt need more than the cache says so in
            ``continue_inputs(output, inputs, count)``: arguments for ``count`` tokens behind the prompt of ``inputs``.
        inputs: B prompts, padded on the left: ``input_ids``, ``attention_mask``, images.
        continuations: Token ids of each candidate, at least one.
        normalize_length: Mean over a candidate's tokens instead of their sum.

    Returns:
        ``(B, candidates)`` float32.
    """
    prompt = model(**inputs, use_cache=True, logits_to_keep=1)
    prefix_cache, mask = read_cache(prompt), inputs.get("attention_mask")
    if mask is None:
        mask = torch.ones_like(inputs["input_ids"])
    # Behind the cache the base model reads: a learned prompt (PEFT) would enter again, and its tokens are in the cache.
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    mask = F.pad(mask, (prefix_cache.get_seq_length() - mask.shape[1], 0), value=1)
    batch, scores = len(mask), []
    for ids in continuations:
        tokens = torch.tensor([list(ids)], device=mask.device).expand(batch, -1)  # (B, C)
        logits = prompt.logits  # (B, 1, vocabulary)
        if (count := tokens.shape[1] - 1) > 0:
            more = base.continue_inputs(prompt, inputs, count) if hasattr(base, "continue_inputs") else {}
            following = base(
                input_ids=tokens[:, :-1],
                attention_mask=torch.cat([mask, mask.new_ones(batch, count)], dim=1),
                use_cache=True,
                **as_keyword(deepcopy(prefix_cache)),  # a cache grows with what it reads
                **more,
            )
            logits = torch.cat([logits, following.logits], dim=1)
        found = logits.float().log_softmax(dim=-1).gather(-1, tokens[..., None])[..., 0]  # (B, C)
        scores.append(found.mean(dim=1) if normalize_length else found.sum(dim=1))
    return torch.stack(scores, dim=1)
