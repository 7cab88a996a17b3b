"""Answering by ranking: which of some given answers is likeliest."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .modeling_prismer import PrismerForConditionalGeneration

__all__ = ["RankedAnswers", "rank_answers"]

_ROWS_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class RankedAnswers:
    """Answers of a batch of prompts.

    Attributes:
        best: ``(B,)`` int64, the answer of each prompt.
        candidates: ``(B, k)`` int64, the answers whose first token is likeliest, likeliest first.
        scores: ``(B, k)`` float32, their negative losses per token.
    """

    best: torch.Tensor
    candidates: torch.Tensor
    scores: torch.Tensor


@torch.inference_mode()
def rank_answers(
    model: PrismerForConditionalGeneration,
    encoder_hidden_states: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    answer_ids: torch.Tensor,
    num_candidates: int = 128,
) -> RankedAnswers:
    """Rank answers in two steps: by their first token, then the best of them as a whole.

    The first token is judged behind a row's LAST place. Prompts that are padded on the right, as the original pads
    them, are judged behind padding there; padded on the left, as by PrismerProcessor, they are judged as they would be
    alone. Answers with one first token tie in the first step: where some must go, it is not said which.

    Args:
        model: The model.
        encoder_hidden_states: ``(B, V, vision width)`` from ``encode_images``.
        input_ids: ``(B, L)`` prompts.
        attention_mask: ``(B, L)``, 0 = padding.
        answer_ids: ``(K, T)`` answers with their end, padded on the right with the model's id of padding.
        num_candidates: Answers k that the second step judges.

    Returns:
        The ranking.
    """
    pad, batch = model.config.text_config.pad_token_id, len(input_ids)
    start = model(input_ids, attention_mask, encoder_hidden_states=encoder_hidden_states, logits_to_keep=1)
    firsts = start.logits[:, -1].softmax(dim=-1)[:, answer_ids[:, 0]]  # (B, K)
    candidates = firsts.topk(min(num_candidates, len(answer_ids)), dim=1).indices  # (B, k)
    answers = answer_ids[candidates.flatten()]  # (B * k, T)
    num_tokens = answers.ne(pad).sum(dim=1)
    rows = torch.arange(batch, device=input_ids.device).repeat_interleave(candidates.shape[1])
    losses = []
    for part in range(0, len(rows), _ROWS_AT_ONCE):
        row, answer = rows[part : part + _ROWS_AT_ONCE], answers[part : part + _ROWS_AT_ONCE]
        ids = torch.cat([input_ids[row], answer], dim=1)  # (rows, L + T)
        labels = torch.cat([torch.full_like(input_ids[row], -100), answer.masked_fill(answer == pad, -100)], dim=1)
        mask = torch.cat([attention_mask[row], answer.ne(pad).to(attention_mask.dtype)], dim=1)
        output = model(ids, mask, encoder_hidden_states=encoder_hidden_states[row], labels=labels)
        losses.append(output.sample_losses)
    scores = (-torch.cat(losses) / num_tokens).view(batch, -1)
    best = candidates.gather(1, scores.argmax(dim=1, keepdim=True))[:, 0]
    return RankedAnswers(best, candidates, scores)
