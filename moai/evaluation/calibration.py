"""Whether the confidence of answers tells right from wrong, and how often answers of a confidence are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from .intervals import wilson_interval
from .tables import format_table

__all__ = ["auroc", "describe_confidence", "format_confidence", "tabulate"]

_BINS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_COVERAGES = (0.5, 0.8)
_DIGITS = 6


def auroc(confidence: np.ndarray, is_right: np.ndarray) -> float | None:
    """Probability that a right answer has more confidence than a wrong one, equal ones counted by half.

    Args:
        confidence: float ``(N,)``.
        is_right: bool ``(N,)``.

    Returns:
        0.5 = confidence tells nothing; None where all answers are right, or all wrong.
    """
    num_right = int(is_right.sum())
    num_wrong = len(is_right) - num_right
    if not num_right or not num_wrong:
        return None
    above = stats.rankdata(confidence)[is_right].sum() - num_right * (num_right + 1) / 2
    return float(above / (num_right * num_wrong))


def describe_confidence(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What confidences are worth.

    Args:
        rows: With ``right``, and ``confidence`` where there is one; the others are left out.

    Returns:
        ``asked``; ``auroc``; ``right_of_surest``, the share of right answers among the surest half and the surest 80 %;
        ``calibration_error``, the mean distance between confidence and share of right answers, weighted by the bins'
        sizes; and ``bins`` with ``from``, ``to``, ``asked``, ``confidence`` (mean), ``right`` (share) and its
        ``interval95``. None where no answer has a confidence.
    """
    rows = [row for row in rows if row.get("confidence") is not None]
    if not rows:
        return None
    confidence = np.array([row["confidence"] for row in rows], dtype=np.float64)
    is_right = np.array([row["right"] for row in rows], dtype=bool)
    order, bins, error = np.argsort(-confidence, kind="stable"), [], 0.0
    places = np.clip(np.digitize(confidence, _BINS) - 1, 0, len(_BINS) - 2)
    for place, (low, high) in enumerate(zip(_BINS, _BINS[1:], strict=False)):
        inside = places == place
        if not inside.any():
            continue
        mean, share = float(confidence[inside].mean()), float(is_right[inside].mean())
        error += float(inside.mean()) * abs(mean - share)
        interval = [round(value, _DIGITS) for value in wilson_interval(int(is_right[inside].sum()), int(inside.sum()))]
        told = {"from": low, "to": high, "asked": int(inside.sum()), "confidence": round(mean, _DIGITS)}
        bins.append(told | {"right": round(share, _DIGITS), "interval95": interval})
    found = auroc(confidence, is_right)
    surest = {
        str(coverage): round(float(is_right[order[: max(1, round(coverage * len(rows)))]].mean()), _DIGITS)
        for coverage in _COVERAGES
    }
    return {
        "asked": len(rows),
        "auroc": None if found is None else round(found, _DIGITS),
        "right_of_surest": surest,
        "calibration_error": round(error, _DIGITS),
        "bins": bins,
    }


def format_confidence(described: Mapping[str, Any]) -> str:
    """A line and a Markdown table of :func:`describe_confidence`.

    Args:
        described: What that returned.
    """
    surest = described["right_of_surest"]
    shares = ", ".join(f"{100 * share:.1f} % of the surest {100 * float(name):.0f} %" for name, share in surest.items())
    told = "none" if described["auroc"] is None else f"{described['auroc']:.3f}"
    line = f"confidence: AUROC {told}; right are {shares}; calibration error {described['calibration_error']:.3f}"
    return f"{line}\n\n" + format_table(*tabulate(described), num_left=1)


def tabulate(described: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the bins, in percent."""
    rows = []
    for one in described["bins"]:
        low, high = (100 * value for value in one["interval95"])
        share = f"{100 * one['right']:.1f} ({low:.1f}-{high:.1f})"
        rows.append([f"{one['from']:.1f}-{one['to']:.1f}", one["asked"], f"{100 * one['confidence']:.1f}", share])
    return ["confidence", "answers", "mean", "right"], rows
