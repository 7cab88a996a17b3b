"""Losses of TCL (arXiv 2202.10401) on features: contrast with queues, local mutual information, masked words."""

from __future__ import annotations

import torch
from torch.nn import functional as F

__all__ = ["contrast", "local_information", "mask_words", "masked_word_loss", "soft_targets"]

_REMOVED = -10000.0


def soft_targets(similarities: torch.Tensor, alpha: float) -> torch.Tensor:
    """Targets of the cross-modal contrast: the momentum model's distribution mixed with the diagonal.

    Args:
        similarities: ``(B, B + Q)`` of the momentum model, divided by the temperature.
        alpha: Share of its distribution; 0 = the own pair alone.

    Returns:
        ``(B, B + Q)`` without gradient.
    """
    similarities = similarities.detach()
    hard = torch.zeros_like(similarities).fill_diagonal_(1)
    return alpha * similarities.softmax(dim=1) + (1 - alpha) * hard


def contrast(similarities: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy of rows of similarities with distributions, a mean over the batch.

    Args:
        similarities: ``(B, B + Q)``, divided by the temperature.
        targets: ``(B, B + Q)``.
    """
    return -(similarities.log_softmax(dim=1) * targets).sum(dim=1).mean()


def local_information(
    anchors: torch.Tensor, locals_: torch.Tensor, temperature: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Contrast of a sample's class vector with its own local vectors, against the other samples' local vectors.

    Args:
        anchors: ``(B, E)`` of the online model.
        locals_: ``(B, N, E)`` of the momentum model.
        temperature: Scalar.
        mask: ``(B, N)``, 0 = padding, which is neither wanted nor avoided; None = there is none.

    Returns:
        Mean over samples of the mean over their local vectors.
    """
    scores = torch.einsum("ae,bne->abn", anchors, locals_) / temperature
    wanted = scores.diagonal().T  # (B, N)
    is_removed = torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)[:, :, None]
    if mask is not None:
        is_removed = is_removed | (mask == 0)[None]
    others = scores.masked_fill(is_removed, _REMOVED).flatten(1).logsumexp(dim=1)
    losses = F.softplus(others[:, None] - wanted)
    if mask is None:
        return losses.mean()
    return ((losses * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)).mean()


def masked_word_loss(
    logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor, alpha: float
) -> torch.Tensor:
    """Cross entropy with the masked words and with the momentum model's distributions, a mean over masked positions.

    Args:
        logits: ``(M, vocabulary)`` at the masked positions.
        teacher_logits: Likewise, of the momentum model.
        labels: ``(M,)``, the words; M = 0 costs nothing.
        alpha: Share of the momentum model.
    """
    log_probabilities = logits.float().log_softmax(dim=-1)
    hard = F.nll_loss(log_probabilities, labels, reduction="sum")
    soft = -(teacher_logits.detach().float().softmax(dim=-1) * log_probabilities).sum()
    return ((1 - alpha) * hard + alpha * soft) / max(len(labels), 1)


def mask_words(
    input_ids: torch.Tensor,
    probability: float,
    mask_id: int,
    vocab_size: int,
    kept_ids: tuple[int, ...],
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hide words: of those drawn 80 % become the mask, 10 % any word, 10 % stay.

    Args:
        input_ids: ``(B, L)`` int64 on the CPU.
        probability: Of a position to be drawn.
        mask_id: Id of the mask.
        vocab_size: Ids are drawn below it.
        kept_ids: Padding and the class token, never drawn; the closing token may be, as in the original.
        generator: Random numbers.

    Returns:
        Ids with hidden words, and labels: the words at the drawn positions, -100 elsewhere; both ``(B, L)``.
    """
    shape = input_ids.shape
    is_drawn = torch.rand(shape, generator=generator) < probability
    is_drawn &= ~torch.isin(input_ids, torch.tensor(kept_ids))
    kind = torch.rand(shape, generator=generator)
    words = torch.randint(vocab_size, shape, generator=generator)
    hidden = torch.where(is_drawn & (kind < 0.8), mask_id, input_ids)
    hidden = torch.where(is_drawn & (kind >= 0.8) & (kind < 0.9), words, hidden)
    return hidden, torch.where(is_drawn, input_ids, -100)
