"""Inferring the roles of tokens (``mm_token_type_ids``): image, prompt, or neither."""

from __future__ import annotations

import torch
from transformers import Cache

from ...processing.token_roles import IGNORE_INDEX, IMAGE_ROLE, LANGUAGE_ROLE


def infer_roles(
    input_ids: torch.Tensor, image_token_id: int, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Infer which tokens are image, which prompt, and which are padding.

    Args:
        input_ids: ``(B, L)``.
        image_token_id: The placeholder's id.
        attention_mask: ``(B, L)`` 1 = attend; None = all.

    Returns:
        ``(B, L)`` int64: 1 image, 2 prompt language, 0 padding.
    """
    roles = torch.where(input_ids == image_token_id, IMAGE_ROLE, LANGUAGE_ROLE)
    return roles if attention_mask is None else roles * attention_mask.bool()


def locate_answers(labels: torch.Tensor | None, shift_labels: torch.Tensor | None) -> torch.Tensor | None:
    """Locate what must not enter the mixture while a model learns: everything from a row's first label on.

    The experts look ahead. An answer token in a stream would tell the positions before it what they are to predict,
    and so would an image or a question behind it, whose states have attended to it.

    Args:
        labels: ``(B, L)`` with -100 where there is no loss, or None.
        shift_labels: ``(B, L)`` the same, already one place to the left, or None.

    Returns:
        ``(B, L)`` bool, True from the first token that is predicted; None without labels.
    """
    is_answer = None
    if labels is not None:
        is_answer = (labels != IGNORE_INDEX).cumsum(dim=1) > 0
    if shift_labels is not None:  # a label at position p is the token at p + 1
        has_label = (shift_labels != IGNORE_INDEX).cumsum(dim=1) > 0
        shifted = torch.cat([torch.zeros_like(has_label[:, :1]), has_label[:, :-1]], dim=1)
        is_answer = shifted if is_answer is None else is_answer | shifted
    return is_answer


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


def add_virtual_tokens(roles: torch.Tensor | None, inputs_embeds: torch.Tensor) -> torch.Tensor | None:
    """Extend roles by the virtual tokens that a prompt-learning adapter puts in front of the prompt's embeddings.

    They are learned words of the prompt, so they are prompt language: the experts see them.

    Args:
        roles: ``(B, L)`` of the tokens, or None.
        inputs_embeds: ``(B, V + L, D)``.

    Returns:
        ``(B, V + L)``, or None.
    """
    if roles is None or roles.dim() != 2:
        return roles
    num_virtual = max(0, inputs_embeds.shape[1] - roles.shape[1])
    return torch.nn.functional.pad(roles, (num_virtual, 0), value=LANGUAGE_ROLE)


def resolve_roles(
    input_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    cache: Cache | None,
    image_token_id: int,
) -> torch.Tensor:
    """Infer the roles for a caller who passed images or auxiliary inputs, but no roles.

    Args:
        input_ids: ``(B, L)`` or None.
        attention_mask: ``(B, L)``, a 4D mask or None.
        cache: A cache; a filled one means that the prompt has been mixed before.
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
        return infer_roles(input_ids, image_token_id, attention_mask)
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
