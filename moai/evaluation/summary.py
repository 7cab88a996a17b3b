"""What rows of answers come to: scores per kind with 95 % intervals, and two sets of answers side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from moai.scenes.scenes import QUESTION_KINDS

from .intervals import bootstrap_mean, wilson_interval
from .metrics import Metric
from .questions import TestQuestion
from .tables import format_difference, format_share, format_table

__all__ = ["ALL", "compare_rows", "format_comparison", "format_more", "format_summary", "summarise"]

#: Name of the row about all kinds.
ALL = "all"
_DIGITS = 6
Row = Mapping[str, Any]


def summarise(questions: Sequence[TestQuestion], rows: Sequence[Row], metric: Metric) -> dict[str, dict[str, Any]]:
    """Per kind, and for all of them: number asked, mean score and its 95 % interval, what else the metric tells.

    Args:
        questions: The test's.
        rows: One per question, in their order.
        metric: The test's.

    Returns:
        Rows by kind; where there are several wordings, ``wordings`` in a row holds such rows by wording. What has no
        answer because of an error counts as wrong; ``failed`` says how many those are.
    """
    pairs = list(zip(questions, rows, strict=True))
    kinds = _in_order(QUESTION_KINDS, (question.kind for question in questions))
    # A share of right answers cannot be averaged with another score.
    counted = [pair for pair in pairs if metric.binary(pair[0].kind)] or pairs
    groups = {kind: [pair for pair in pairs if pair[0].kind == kind] for kind in kinds}
    groups = {ALL: counted} | groups if len(kinds) > 1 else groups
    table = {}
    for kind, part in groups.items():
        table[kind] = _summary(part, metric)
        wordings = _in_order(("trained", "original"), (question.wording for question, _ in part if question.wording))
        if len(wordings) > 1:
            halves = {name: [pair for pair in part if pair[0].wording == name] for name in wordings}
            table[kind]["wordings"] = {name: _summary(half, metric) for name, half in halves.items()}
            if sets := _group_paraphrases(part):
                table[kind]["right_in_all_wordings"] = sum(map(all, sets)) / len(sets)
    return table


def _in_order(first: Sequence[str], found: Iterable[str]) -> list[str]:
    """What was found, each once: known ones first, in their order."""
    present = dict.fromkeys(found)
    return [name for name in dict.fromkeys((*first, *present)) if name in present]


def _group_paraphrases(part: Sequence[tuple[TestQuestion, Row]]) -> list[list[bool]]:
    groups: dict[str, list[bool]] = {}
    for question, row in part:
        groups.setdefault(question.said_as or question.id, []).append(row["right"])
    return [group for group in groups.values() if len(group) > 1]


def _summary(part: Sequence[tuple[TestQuestion, Row]], metric: Metric) -> dict[str, Any]:
    kind, scores = part[0][0].kind, np.array([row["score"] for _, row in part])
    summary: dict[str, Any] = {"asked": len(part), "measure": metric.label(kind), "value": float(scores.mean())}
    if metric.binary(kind):
        summary["right"] = int(scores.sum())
        low, high = wilson_interval(summary["right"], len(part))
    elif len(part) > 1:
        low, high = _bounds(scores)
    else:
        low, high = 0.0, 1.0
    summary["interval95"] = [low, high]
    if failed := sum("error" in row for _, row in part):
        summary["failed"] = failed
    return _rounded(summary | dict(metric.describe([(question, row["given"]) for question, row in part])))


def _bounds(scores: np.ndarray) -> tuple[float, float]:
    if np.ptp(scores) == 0:  # nothing to resample
        return float(scores[0]), float(scores[0])
    found = bootstrap_mean([scores[None]])
    return found.low, found.high


def _rounded(summary: dict[str, Any]) -> dict[str, Any]:
    """Numbers cut where machines begin to differ."""
    plain = {name: round(value, _DIGITS) if isinstance(value, float) else value for name, value in summary.items()}
    return plain | {"interval95": [round(float(value), _DIGITS) for value in summary["interval95"]]}


def compare_rows(first: Sequence[Row], second: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Two sets of answers to the same questions, per kind and for all.

    Args:
        first: Rows with ``id``, ``score`` and ``right``.
        second: Likewise; questions that only one has are left out.

    Returns:
        By kind: ``asked``, ``first`` and ``second`` (mean scores), ``difference`` (second minus first) with its
        ``interval95`` (paired bootstrap), ``only_first`` and ``only_second`` (questions that one alone has right) and
        ``p`` of McNemar's exact test.

    Raises:
        ValueError: They have no question in common, or ask different things under one id.
    """
    others = {row["id"]: row for row in second}
    pairs = [(row, others[row["id"]]) for row in first if row["id"] in others]
    if not pairs:
        raise ValueError("expected two results of one test, got none of whose questions both have. Name others.")
    for one, other in pairs:
        if (one["question"], one.get("answers")) != (other["question"], other.get("answers")):
            raise ValueError(
                f"expected results of one test, got under the id {one['id']!r} {one['question']!r} in the first and "
                f"{other['question']!r} in the second."
            )
    kinds = list(dict.fromkeys(one.get("kind", ALL) for one, _ in pairs))
    groups = {kind: [pair for pair in pairs if pair[0].get("kind", ALL) == kind] for kind in kinds}
    return {kind: _comparison(part) for kind, part in ({ALL: pairs} | groups if len(kinds) > 1 else groups).items()}


def _comparison(pairs: Sequence[tuple[Row, Row]]) -> dict[str, Any]:
    scores = np.array([[row["score"] for row in pair] for pair in pairs])
    differences = scores[:, 1] - scores[:, 0]
    low, high = _bounds(differences) if len(pairs) > 1 else (-1.0, 1.0)
    only_first = sum(one["right"] and not other["right"] for one, other in pairs)
    only_second = sum(other["right"] and not one["right"] for one, other in pairs)
    unequal = only_first + only_second
    p = float(stats.binomtest(only_first, unequal).pvalue) if unequal else 1.0
    first, second = (float(value) for value in scores.mean(axis=0))
    row = {"asked": len(pairs), "first": first, "second": second, "difference": float(differences.mean())}
    row |= {"interval95": [low, high], "only_first": only_first, "only_second": only_second, "p": p}
    return _rounded(row)


def format_summary(conditions: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """A Markdown table: one column per condition, one row per kind and, where there are several, wording.

    Args:
        conditions: By condition, what :func:`summarise` returned.
    """
    names, rows = list(conditions), []
    first = conditions[names[0]]
    for kind, row in first.items():
        label = (
            kind.replace("_", " ") if row["measure"] == "accuracy" else f"{kind.replace('_', ' ')} ({row['measure']})"
        )
        parts = [conditions[name].get(kind) for name in names]
        rows.append([label, "", row["asked"], *map(format_share, parts)])
        for wording in row.get("wordings", ()):
            halves = [None if part is None else part.get("wordings", {}).get(wording) for part in parts]
            rows.append(["", wording, halves[0]["asked"], *map(format_share, halves)])
    columns = ["question", "wording", "asked", *(name.replace("_", " ") for name in names)]
    if not any(row[1] for row in rows):
        columns, rows = [columns[0], *columns[2:]], [[row[0], *row[2:]] for row in rows]
    return format_table(columns, rows, num_left=len(columns) - len(names) - 1)


def format_more(conditions: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Lines with what else the metric tells about all kinds under each condition."""
    lines = []
    known = {"asked", "measure", "value", "right", "interval95", "wordings"}
    for name, table in conditions.items():
        for kind, row in table.items():
            told = [f"{key.replace('_', ' ')} {_number(value)}" for key, value in row.items() if key not in known]
            if told and (kind == ALL or len(table) == 1 or kind == "description"):
                lines.append(f"{name}, {kind}: {', '.join(told)}")
    return lines


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def format_comparison(comparison: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    """A Markdown table of :func:`compare_rows`.

    Args:
        comparison: By kind.
        names: Of the first and of the second.
    """
    rows = []
    for kind, row in comparison.items():
        cells = [f"{100 * row['first']:.1f}", f"{100 * row['second']:.1f}", format_difference(row)]
        cells += [row["only_first"], row["only_second"], f"{row['p']:.2g}"]
        rows.append([kind.replace("_", " "), row["asked"], *cells])
    columns = ["question", "asked", *names, "difference", f"only {names[0]}", f"only {names[1]}", "McNemar p"]
    return format_table(columns, rows, num_left=1)
