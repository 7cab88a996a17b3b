"""Shares of right answers over questions and seeds, differences between variants, and how sure both are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .ablation import AblationResult
from .ablation_config import START, AblationConfig, Variant
from .answer_metrics import wilson_interval

__all__ = ["Comparison", "Share", "compare", "mean_share", "reference_of", "right_answers", "share_of"]

RESAMPLES = 4000


@dataclass(frozen=True)
class Share:
    """A share or a difference of shares with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A variant against its reference at the questions where the paper says that it falls behind.

    Attributes:
        kinds: Those kinds.
        difference: Of the mean over kinds, variant minus reference; paired by question and seed.
        verdict: ``as in the paper`` (the whole interval lies below 0), ``against the paper`` (above), ``no difference``
            (every question was answered equally well), ``undecided``.
    """

    kinds: tuple[str, ...]
    difference: Share
    verdict: str


def right_answers(
    config: AblationConfig, results: Mapping[tuple[str, int], AblationResult], variant: Variant
) -> dict[int, dict[str, np.ndarray]]:
    """Right or wrong by seed and kind, float64 (questions of the kind,), for the seeds that are finished."""
    found = {}
    for seed in config.seeds:
        result = results.get((variant.name, seed))
        if result is not None:
            kinds, right = np.array(result.kinds), np.array(result.right, dtype=np.float64)
            found[seed] = {kind: right[kinds == kind] for kind in config.test.kinds}
    return found


def _resample(rows: Sequence[Sequence[np.ndarray]]) -> Share:
    """Mean over kinds, bootstrap over questions within a kind and over seeds.

    Args:
        rows: Per seed, per kind, float64 (questions,); equal shapes for all seeds.
    """
    rng = np.random.default_rng(0)
    seeds = rng.integers(len(rows), size=(RESAMPLES, len(rows)))
    means = np.zeros(RESAMPLES)
    for kind in range(len(rows[0])):
        values = np.stack([row[kind] for row in rows])  # (seeds, questions)
        count = values.shape[1]
        weights = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count  # (resamples, questions)
        by_seed = weights @ values.T  # (resamples, seeds)
        means += np.take_along_axis(by_seed, seeds, axis=1).mean(axis=1) / len(rows[0])
    low, high = np.quantile(means, (0.025, 0.975))
    value = float(np.mean([[kind.mean() for kind in row] for row in rows]))
    return Share(value, float(low), float(high))


def share_of(right: Mapping[int, Mapping[str, np.ndarray]], kind: str) -> Share:
    """Share of right answers of a kind: Wilson's interval with one seed, else bootstrap over questions and seeds.

    Where all seeds answer everything right, or nothing, a bootstrap would be sure of it: Wilson's interval of one seed
    stands there too.
    """
    rows = [[of_seed[kind]] for of_seed in right.values()]
    if len(rows) > 1 and 0 < np.mean(rows) < 1:
        return _resample(rows)
    hits, asked = int(rows[0][0].sum()), len(rows[0][0])
    return Share(hits / asked, *wilson_interval(hits, asked))


def mean_share(right: Mapping[int, Mapping[str, np.ndarray]]) -> Share:
    """Mean over kinds, bootstrap over questions and seeds."""
    return _resample([list(of_seed.values()) for of_seed in right.values()])


def reference_of(config: AblationConfig, variant: Variant) -> Variant:
    """What a variant is compared with: the first one tested with the same weights, else the set's reference."""
    if variant.weights_of == START:
        return next(one for one in config.variants if one.weights_of == START)
    return config.reference


def compare(
    config: AblationConfig, results: Mapping[tuple[str, int], AblationResult], variant: Variant
) -> Comparison | None:
    """A variant against its reference; None where the paper claims nothing or nothing is finished."""
    kinds = tuple(kind for kind in variant.worse_at if kind in config.test.kinds)
    own = right_answers(config, results, variant)
    other = right_answers(config, results, reference_of(config, variant))
    seeds = [seed for seed in own if seed in other]
    if not kinds or not seeds:
        return None
    difference = _resample([[own[seed][kind] - other[seed][kind] for kind in kinds] for seed in seeds])
    verdict = "undecided"
    if difference.high < 0:
        verdict = "as in the paper"
    elif difference.low > 0:
        verdict = "against the paper"
    elif difference.low == difference.high == 0:
        verdict = "no difference"
    return Comparison(kinds, difference, verdict)
