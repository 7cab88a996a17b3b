"""Roles of tokens (``mm_token_type_ids``): what is picture, what is prompt, what must bypass the mixture."""

from __future__ import annotations

import torch

IMAGE_ROLE, LANGUAGE_ROLE = 1, 2  # 0 = padding, answer or decoded token


def infer_roles(
    input_ids: torch.Tensor,
    image_token_id: int,
    attention_mask: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """Tell image, prompt language and bypass (padding, answers) apart.

    Args:
        input_ids: ``(B, L)``.
        image_token_id: The placeholder's id.
        attention_mask: ``(B, L)`` 1 = attend; None = all.
        labels: ``(B, L)`` with -100 outside the answer; answers must not enter the mixture, whose experts look ahead.

    Returns:
        ``(B, L)`` int64: 1 image, 2 prompt language, 0 neither.
    """
    is_prompt = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    if labels is not None:
        is_prompt = is_prompt & (labels == -100)
    is_image = input_ids == image_token_id
    return torch.where(is_prompt, torch.where(is_image, IMAGE_ROLE, LANGUAGE_ROLE), 0)
