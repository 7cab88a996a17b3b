"""Labels and losses of Emu: the next word, or the next embedding of an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ...processing.token_roles import IGNORE_INDEX
from .configuration_emu import EmuConfig

__all__ = ["compute_regression_loss", "find_regression_pairs", "label_text", "mask_images"]


def label_text(input_ids: torch.Tensor, config: EmuConfig, pad_token_id: int | None) -> torch.Tensor:
    """Labels of mixed sequences: all but padding and images, whose start and end are not learned either.

    Args:
        input_ids: ``(B, L)``.
        config: Of the model.
        pad_token_id: Id of padding; None = there is none.

    Returns:
        ``(B, L)`` int64, -100 where there is no loss.
    """
    images = (config.image_start_token_id, config.image_end_token_id, config.image_token_id)
    return mask_images(input_ids, images if pad_token_id is None else (*images, pad_token_id))


def mask_images(input_ids: torch.Tensor, silent: Sequence[int]) -> torch.Tensor:
    """Labels of any shape: the ids, -100 where they are one of the silent ones.

    Args:
        input_ids: int64.
        silent: Ids that nobody learns: those of images' tokens.
    """
    return input_ids.masked_fill(torch.isin(input_ids, input_ids.new_tensor(silent)), IGNORE_INDEX)


def find_regression_pairs(input_ids: torch.Tensor, config: EmuConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Where an embedding is predicted, and where the predicted one stands.

    Args:
        input_ids: ``(B, L)``.
        config: ``regression_targets`` decides.

    Returns:
        Two ``(B, L)`` masks of equally many places, in the same order.
    """
    if config.regression_targets == "released":
        ids = input_ids.new_tensor([config.image_start_token_id, config.image_token_id, config.image_end_token_id])
        return torch.isin(input_ids, ids[:2]), torch.isin(input_ids, ids[1:])
    targets = input_ids == config.image_token_id
    targets[:, 0] = False  # nothing stands before it
    return targets.roll(-1, dims=1), targets


def compute_regression_loss(
    predicted: torch.Tensor, inputs_embeds: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Mean squared error of predicted embeddings.

    Args:
        predicted: ``(P, D)``.
        inputs_embeds: ``(B, L, D)`` what the decoder read; no gradients go there, as in the released code.
        targets: ``(B, L)`` mask of P places.

    Returns:
        Scalar; 0 where there are no pairs.
    """
    if not len(predicted):
        return predicted.sum()
    return F.mse_loss(predicted.float(), inputs_embeds.detach()[targets].float())
