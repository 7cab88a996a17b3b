"""The loss: next-token cross-entropy in which the image placeholder is no word to learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...processing.token_roles import IGNORE_INDEX


def ignore_placeholders(labels: torch.Tensor | None, image_token_id: int) -> torch.Tensor | None:
    """Take the loss from image placeholders, which labels name that are a copy of the ids.

    Args:
        labels: ``(B, L)``, shifted or not, or None.
        image_token_id: The placeholder's id.

    Returns:
        ``(B, L)`` with -100 in their places; None as it is.
    """
    return None if labels is None else labels.masked_fill(labels == image_token_id, IGNORE_INDEX)


def loss_without_placeholders(
    loss_function: Callable[..., torch.Tensor],
    image_token_id: int,
    logits: torch.Tensor,
    labels: torch.Tensor | None = None,
    *,
    shift_labels: torch.Tensor | None = None,
    num_items_in_batch: torch.Tensor | int | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Compute transformers' loss on everything but image placeholders.

    A trainer counts ``num_items_in_batch`` over all its labels, placeholders included, and perhaps over several
    micro-batches of which one is here. The share of words among this micro-batch's labels corrects it: exact for a
    batch in one piece, and of the right size for any other.

    Args:
        loss_function: Of transformers (``ForCausalLMLoss``).
        image_token_id: The placeholder's id.
        logits: ``(B, L, vocab_size)``.
        labels: ``(B, L)``, -100 = ignore, or None beside ``shift_labels``.
        shift_labels: ``(B, L)`` labels one place to the left; they win.
        num_items_in_batch: What the sum is divided by; None = the number of words here.
        **kwargs: Passed to ``loss_function``.

    Returns:
        A scalar.
    """
    counted = labels[..., 1:] if shift_labels is None else shift_labels  # what a trainer counts
    if num_items_in_batch is not None:
        num_labels = (counted != IGNORE_INDEX).sum()
        num_words = num_labels - (counted == image_token_id).sum()
        share = num_words.clamp_min(1) / num_labels.clamp_min(1)  # 1 where no label is a placeholder
        if isinstance(num_items_in_batch, torch.Tensor):
            num_items_in_batch = num_items_in_batch.to(share.device)
        num_items_in_batch = num_items_in_batch * share
    return loss_function(
        logits=logits,
        labels=ignore_placeholders(labels, image_token_id),
        shift_labels=ignore_placeholders(shift_labels, image_token_id),
        num_items_in_batch=num_items_in_batch,
        **kwargs,
    )


__all__ = ["ignore_placeholders", "loss_without_placeholders"]
