import numpy as np
import pytest

from moai.evaluation.intervals import bootstrap_mean, wilson_interval


def test_wilson_interval_matches_published_values_when_shares_are_extreme_or_middle():
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 81/263, 15/148, 0/20, 1/29.
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (right, asked), interval in published.items():
        assert wilson_interval(right, asked) == pytest.approx(interval, abs=6e-5)


def test_wilson_interval_raises_when_counts_do_not_fit():
    with pytest.raises(ValueError, match="expected 0 <= right <= asked"):
        wilson_interval(3, 2)
    with pytest.raises(ValueError, match="asked >= 1"):
        wilson_interval(0, 0)


def test_mean_counts_every_group_once_when_groups_differ_in_size():
    assert bootstrap_mean([np.ones((1, 10)), np.zeros((1, 30))]).value == 0.5


def test_interval_is_that_of_the_normal_approximation_when_there_are_many_questions():
    right = (np.arange(2000) % 4 == 0).astype(float)[None]
    found, reach = bootstrap_mean([right]), 1.96 * np.sqrt(0.25 * 0.75 / 2000)
    assert (found.low, found.high) == pytest.approx((0.25 - reach, 0.25 + reach), abs=2e-3)


def test_interval_widens_when_seeds_disagree():
    rng = np.random.default_rng(0)
    alike = np.stack([rng.random(400) < 0.5 for _ in range(3)]).astype(float)
    apart = np.stack([rng.random(400) < 0.2 + 0.3 * seed for seed in range(3)]).astype(float)
    narrow, wide = bootstrap_mean([alike]), bootstrap_mean([apart])
    assert narrow.low < narrow.value < narrow.high
    assert narrow.high - narrow.low < 0.1 < 0.25 < wide.high - wide.low
