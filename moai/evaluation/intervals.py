"""95 % intervals of shares, means and paired differences: Wilson's and bootstrap, both scipy's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

__all__ = ["Interval", "bootstrap_mean", "wilson_interval"]

RESAMPLES = 4000


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


def wilson_interval(right: int, asked: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (E. B. Wilson, JASA 22, 1927).

    Args:
        right: Successes.
        asked: Trials, at least 1.
        confidence: Of the interval.

    Raises:
        ValueError: Counts do not fit.
    """
    if asked < 1 or not 0 <= right <= asked:
        raise ValueError(f"expected 0 <= right <= asked and asked >= 1, got {right} and {asked}.")
    found = stats.binomtest(right, asked).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


def bootstrap_mean(groups: Sequence[np.ndarray]) -> Interval:
    """Mean over groups of their means: percentile bootstrap over the questions of each group, and over seeds.

    Args:
        groups: Float ``(seeds, questions)`` each, the same seeds in all, at least two questions. Scores, or paired
            differences of scores.
    """
    num_seeds = len(groups[0])
    places = [np.arange(group.shape[1]) for group in groups]
    seeds = [np.arange(num_seeds)] if num_seeds > 1 else []  # scipy resamples nothing of which there is one

    def statistic(*drawn: np.ndarray, axis: int = -1) -> Any:
        rows = drawn[0][..., :, None] if seeds else np.zeros((1, 1), dtype=int)
        columns = drawn[len(seeds) :]
        means = [
            group[rows, column[..., None, :]].mean((-2, -1)) for group, column in zip(groups, columns, strict=True)
        ]
        return np.mean(means, axis=0)

    found = stats.bootstrap(
        [*seeds, *places],
        statistic,
        n_resamples=RESAMPLES,
        batch=200,
        vectorized=True,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return Interval(float(np.mean([group.mean() for group in groups])), float(found.low), float(found.high))
