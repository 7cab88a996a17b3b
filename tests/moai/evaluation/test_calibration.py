"""Confidence of answers against whether they are right."""

import numpy as np
import pytest

from moai.evaluation.calibration import auroc, describe_confidence, format_confidence


def test_auroc_counts_pairs_when_some_are_equal():
    confidence, is_right = np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False])
    pairs = [(a > b) + (a == b) / 2 for a in confidence[is_right] for b in confidence[~is_right]]
    assert auroc(confidence, is_right) == pytest.approx(np.mean(pairs)) == 0.875
    assert auroc(confidence, np.ones(4, bool)) is None
    assert auroc(np.full(4, 0.3), is_right) == 0.5


def test_confidence_is_described_when_some_answers_have_none():
    rows = [
        {"confidence": c, "right": r} for c, r in ((1.0, True), (0.9, True), (0.5, False), (0.3, True), (0.1, False))
    ]
    told = describe_confidence([*rows, {"right": True}])
    assert told["asked"] == 5 and told["auroc"] == pytest.approx(5 / 6, abs=1e-6)
    assert told["right_of_surest"] == {"0.5": 1.0, "0.8": 0.75}
    assert [(one["from"], one["asked"], one["right"]) for one in told["bins"]] == [
        (0.0, 1, 0.0), (0.2, 1, 1.0), (0.4, 1, 0.0), (0.8, 2, 1.0)
    ]  # fmt: skip
    assert told["calibration_error"] == pytest.approx((0.1 + 0.7 + 0.5 + 2 * 0.05) / 5)
    shown = format_confidence(told)
    assert "AUROC 0.833; right are 100.0 % of the surest 50 %, 75.0 % of the surest 80 %" in shown
    assert "| 0.8-1.0" in shown and describe_confidence([{"right": True}]) is None
