"""What the student does not see: blocks of an image's patches, spans of a text's tokens."""

from __future__ import annotations

import math
from random import Random

import numpy as np

__all__ = ["draw_block_mask", "draw_span_mask"]

_NUM_TRIES = 10
_MIN_ASPECT = 0.3


def draw_block_mask(
    side: int, num_masked: int, rng: Random, min_block: int = 16, max_block: int | None = None
) -> np.ndarray:
    """Cover a grid of patches with rectangles, as BEiT does.

    Never more than ``num_masked`` are covered, often fewer: drawing ends when ten rectangles in a row do not fit.

    Args:
        side: Patches in a row.
        num_masked: How many to cover at most.
        rng: Random numbers.
        min_block: Patches of the smallest rectangle that is aimed at.
        max_block: Of the largest; None = ``num_masked``.

    Returns:
        ``(side, side)`` bool, True = covered.
    """
    mask = np.zeros((side, side), dtype=bool)
    max_block = num_masked if max_block is None else max_block
    aspects = (math.log(_MIN_ASPECT), math.log(1 / _MIN_ASPECT))
    while (left_over := min(num_masked - int(mask.sum()), max_block)) > 0:
        for _ in range(_NUM_TRIES):
            area, aspect = rng.uniform(min_block, left_over), math.exp(rng.uniform(*aspects))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= side or width >= side:
                continue
            top, left = rng.randint(0, side - height), rng.randint(0, side - width)
            block = mask[top : top + height, left : left + width]
            if 0 < block.size - int(block.sum()) <= left_over:
                block[:] = True
                break
        else:
            break
    return mask


def draw_span_mask(length: int, probability: float, span: int, rng: np.random.Generator) -> np.ndarray:
    """Cover spans of a text, as fairseq does.

    Starts are drawn among all tokens, special ones included; spans may overlap and end with the text. So fewer tokens
    are covered than ``probability`` says: 31 % for 35 % in spans of 4.

    Args:
        length: Tokens.
        probability: Share of tokens that spans would cover if they did not overlap.
        span: Tokens in a span.
        rng: Random numbers.

    Returns:
        ``(length,)`` bool, True = covered.
    """
    mask = np.zeros(length, dtype=bool)
    count = int(probability * length / span + rng.random())
    for start in rng.choice(length, count, replace=False):
        mask[start : start + span] = True
    return mask
