"""Inferring the roles of tokens (``mm_token_type_ids``): image, prompt, or neither."""

from __future__ import annotations

import torch
from transformers import Cache

from ...processing.token_roles import IGNORE_INDEX, IMAGE_ROLE, LANGUAGE_ROLE, NO_ROLE


def infer_roles(
    input_ids: torch.Tensor,
    image_token_id: int,
    attention_mask: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """Infer which tokens are image, which prompt, and which bypass the mixture (padding, answers).

    Args:
        input_ids: ``(B, L)``.
        image_token_id: The placeholder's id.
        attention_mask: ``(B, L)`` 1 = attend; None = all.
        labels: ``(B, L)`` with -100 outside the answer; from a sample's first label on nothing enters the mixture,
            whose experts look ahead: neither the answer nor a later turn.

    Returns:
        ``(B, L)`` int64: 1 image, 2 prompt language, 0 neither.
    """
    is_prompt = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    if labels is not None:
        is_prompt = is_prompt & ((labels != IGNORE_INDEX).cumsum(dim=1) == 0)
    is_image = input_ids == image_token_id
    return torch.where(is_prompt, torch.where(is_image, IMAGE_ROLE, LANGUAGE_ROLE), NO_ROLE)


def read_placeholders(inputs_embeds: torch.Tensor, embedding: torch.nn.Module, image_token_id: int) -> torch.Tensor:
    """Recover the positions of image placeholders from embeddings.

    Args:
        inputs_embeds: ``(B, L, D)``.
        embedding: The word embedding they come from.
        image_token_id: The placeholder's id.

    Returns:
        ``(B, L)`` int64: the placeholder's id, or -1 for any word.
    """
    placeholder = embedding(torch.tensor(image_token_id, device=inputs_embeds.device))
    return torch.where((inputs_embeds == placeholder).all(-1), image_token_id, -1)


def resolve_roles(
    input_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    cache: Cache | None,
    labels: torch.Tensor | None,
    image_token_id: int,
) -> torch.Tensor:
    """Infer the roles for a caller who passed images or auxiliary inputs, but no roles.

    Args:
        input_ids: ``(B, L)`` or None.
        attention_mask: ``(B, L)``, a 4D mask or None.
        cache: A cache; a filled one means that the prompt has been mixed before.
        labels: ``(B, L)`` with -100 outside the answer, or None.
        image_token_id: The placeholder's id.

    Returns:
        ``(B, L)`` roles.

    Raises:
        ValueError: If they cannot be inferred: a guess would give a wrong result.
    """
    num_cached = 0 if cache is None else cache.get_seq_length()
    if isinstance(num_cached, torch.Tensor) and torch.compiler.is_compiling():
        reason = "beside a static cache in a traced graph"
    elif num_cached > 0:
        reason = "beside a filled cache and new images or findings"
    elif input_ids is None or (attention_mask is not None and attention_mask.dim() != 2):
        reason = "with `inputs_embeds` or a 4D mask"
    else:
        return infer_roles(input_ids, image_token_id, attention_mask, labels)
    raise ValueError(
        f"Expected `mm_token_type_ids` {reason}, got none: which tokens are prompt and which are answer cannot be "
        "told. The processor returns it."
    )


def infer_positions(attention_mask: torch.Tensor, length: int) -> torch.Tensor:
    """Position ids of the last ``length`` tokens, padding not counted: a padded row gets those of the row alone.

    Args:
        attention_mask: ``(B, past + length)`` 1 = attend.
        length: Tokens of this pass.

    Returns:
        ``(B, length)`` int64; 0 on left padding.
    """
    positions = attention_mask.long().cumsum(dim=-1) - 1
    return positions.clamp_min(0)[:, -length:]
