"""Labels of OpenFlamingo's two kinds of training text."""

from __future__ import annotations

import torch

from ...processing.token_roles import IGNORE_INDEX

__all__ = ["label_interleaved", "label_pairs"]


def label_pairs(input_ids: torch.Tensor, image_token_id: int, pad_token_id: int) -> torch.Tensor:
    """Labels of images with their captions (LAION): all but padding and ``<image>``.

    Args:
        input_ids: ``(B, L)``.
        image_token_id: Id of ``<image>``.
        pad_token_id: Id of padding.

    Returns:
        ``(B, L)`` int64, -100 where there is no loss.
    """
    ignored = (input_ids == image_token_id) | (input_ids == pad_token_id)
    return input_ids.masked_fill(ignored, IGNORE_INDEX)


def label_interleaved(
    input_ids: torch.Tensor, image_token_id: int, end_of_chunk_token_id: int, pad_token_id: int
) -> torch.Tensor:
    """Labels of documents with images (MMC4): only text that belongs to an image, from it to its ``<|endofchunk|>``.

    Args:
        input_ids: ``(B, L)``.
        image_token_id: Id of ``<image>``.
        end_of_chunk_token_id: Id of ``<|endofchunk|>``, which is learned where it ends an image's text.
        pad_token_id: Id of padding.

    Returns:
        ``(B, L)`` int64, -100 where there is no loss.
    """
    is_image = input_ids == image_token_id
    ends = (input_ids == end_of_chunk_token_id).long()
    num_ends_before = ends.cumsum(dim=1) - ends
    # The ends before a row's latest image: the running maximum, as their number never falls.
    at_image = num_ends_before.masked_fill(~is_image, -1).cummax(dim=1).values
    belongs = (at_image >= 0) & (num_ends_before == at_image)
    return label_pairs(input_ids, image_token_id, pad_token_id).masked_fill(~belongs, IGNORE_INDEX)
