"""Report of a sweep: tables in Markdown, plot, comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moai.import_utils import require
from verbalizers.core.durable_files import atomic_file

from .intervals import Interval, bootstrap_mean, wilson_interval
from .tables import format_difference, format_table

if TYPE_CHECKING:
    from .sweep import Results
    from .sweep_settings import SweepSettings, Variant

__all__ = [
    "BEGIN",
    "END",
    "Comparison",
    "collect_scores",
    "compare",
    "draw_sweep",
    "interval_of",
    "sweep_report",
    "write_markdown",
]

#: What stands between these lines of a Markdown file is replaced; the rest is left alone.
BEGIN, END = "<!-- moai {command}: begin -->", "<!-- moai {command}: end -->"


def collect_scores(sweep: SweepSettings, results: Results, variant: Variant) -> dict[int, dict[str, np.ndarray]]:
    """Right (1) or wrong (0) by finished seed and kind, float64 ``(questions of the kind,)``."""
    found = {}
    for seed in sweep.seeds:
        if (variant.name, seed) in results:
            result = results[variant.name, seed]
            kinds, right = np.array(result.kinds), np.array(result.right, dtype=np.float64)
            found[seed] = {kind: right[kinds == kind] for kind in sweep.evaluate.kinds}
    return found


def interval_of(scores: Mapping[int, Mapping[str, np.ndarray]], kinds: Sequence[str]) -> Interval:
    """Accuracy with its interval: Wilson's for one kind and seed, else bootstrap over questions and seeds.

    Where all seeds answer everything right, or nothing, a bootstrap would be sure of it: Wilson's interval of one seed
    stands there too.

    Args:
        scores: From :func:`collect_scores`.
        kinds: Kinds of questions; the mean over several counts each once.
    """
    groups = [np.stack([of_seed[kind] for of_seed in scores.values()]) for kind in kinds]
    if len(kinds) == 1 and (len(scores) == 1 or groups[0].mean() in (0.0, 1.0)):
        first = groups[0][0]
        return Interval(float(first.mean()), *wilson_interval(int(first.sum()), len(first)))
    return bootstrap_mean(groups)


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
    difference: Interval
    verdict: str


def compare(sweep: SweepSettings, results: Results, variant: Variant) -> Comparison | None:
    """A variant against its reference; None where the paper claims nothing or nothing is finished."""
    kinds = tuple(kind for kind in variant.worse_at if kind in sweep.evaluate.kinds)
    own, other = (collect_scores(sweep, results, one) for one in (variant, sweep.reference_of(variant)))
    seeds = [seed for seed in own if seed in other]
    if not kinds or not seeds:
        return None
    difference = bootstrap_mean([np.stack([own[seed][kind] - other[seed][kind] for seed in seeds]) for kind in kinds])
    verdict = "undecided"
    if difference.high < 0:
        verdict = "as in the paper"
    elif difference.low > 0:
        verdict = "against the paper"
    elif difference.low == difference.high == 0:
        verdict = "no difference"
    return Comparison(kinds, difference, verdict)


def _finished(sweep: SweepSettings, results: Results) -> dict[str, list[Variant]]:
    """Variants with results, by table, in the order of the settings."""
    tables: dict[str, list[Variant]] = {}
    for variant in sweep.variants:
        if any((variant.name, seed) in results for seed in sweep.seeds):
            tables.setdefault(variant.table, []).append(variant)
    return tables


def _accuracy_tables(sweep: SweepSettings, results: Results) -> list[str]:
    kinds, lines = sweep.evaluate.kinds, []
    for table, variants in _finished(sweep, results).items():
        first = sweep.reference_of(variants[0])
        is_missing = first not in variants and any(name == first.name for name, _ in results)
        rows = []
        for variant in [first] * is_missing + variants:
            scores = collect_scores(sweep, results, variant)
            cells = [interval_of(scores, columns) for columns in (*((kind,) for kind in kinds), kinds)]
            shown = [f"{100 * cell.value:.0f} ({100 * cell.low:.0f}-{100 * cell.high:.0f})" for cell in cells]
            rows.append([variant.label, len(scores), *shown])
        lines += [f"### {table}", "", format_table(["", "seeds", *kinds, "mean"], rows), ""]
    return lines


def _costs(sweep: SweepSettings, results: Results) -> list[str]:
    """What the variants that begin with new models took; means over seeds."""
    rows = []
    for variant in sweep.variants:
        found = [results[variant.name, seed] for seed in sweep.seeds if (variant.name, seed) in results]
        if found and sweep.root_of(variant).start is not None:
            first, num = found[0], len(found)
            milliseconds = 1000 * sum(result.seconds_per_question for result in found) / num
            length = sum(result.sequence_length for result in found) / num
            training = sum(result.train_seconds for result in found) / num
            numbers = [f"{first.trained_parameters:,}", f"{length:.0f}", first.num_latents]
            rows.append([variant.label, *numbers, f"{milliseconds:.0f}", f"{training:.0f}"])
    columns = ["", "parameters trained", "tokens read", "vectors looked up", "ms per question", "training in s"]
    return ["### What it takes", "", format_table(columns, rows), ""] if rows else []


def _comparisons(sweep: SweepSettings, results: Results) -> list[str]:
    rows = []
    for variant in sweep.variants:
        found = compare(sweep, results, variant)
        if found is not None:
            at = "all kinds" if set(found.kinds) == set(sweep.evaluate.kinds) else ", ".join(found.kinds)
            value, low, high = vars(found.difference).values()
            difference = format_difference({"difference": value, "interval95": (low, high)})
            reference = sweep.reference_of(variant).name
            rows.append([f"{variant.name}: {variant.label}", reference, at, difference, found.verdict])
    columns = ["variant", "compared with", "at", "difference in points", ""]
    return ["### The paper's orderings", "", format_table(columns, rows), ""] if rows else []


def _what_it_took(sweep: SweepSettings, results: Results) -> str:
    spent = [result.train_seconds for result in results.values() if result.train_seconds]
    total = sum(spent) + sum(result.test_seconds for result in results.values())
    text = f"{len(results)} runs of {len({name for name, _ in results})} variants"
    if spent:
        text += f", {len(spent)} of them trained, each in {min(spent):.0f} to {max(spent):.0f} s"
    test = sweep.evaluate
    text += (
        f". Asked: {test.per_kind} questions per kind about {test.split} scenes of {test.num_objects[0]} to "
        f"{test.num_objects[1]} objects, verbalizers' noise {test.noise:g}. Wall time {total / 60:.0f} min."
    )
    missing = len(sweep.variants) - len({name for name, _ in results})
    return text + (f" {missing} variants are not finished." if missing else "")


def sweep_report(sweep: SweepSettings, results: Results, plot: str | None = None) -> str:
    """Tables of accuracy, the paper's orderings, time, in Markdown.

    Args:
        sweep: All settings.
        results: What is finished.
        plot: Path of the plot relative to the Markdown file.
    """
    lines = [_what_it_took(sweep, results), ""]
    if plot is not None:
        lines += [f"![Accuracy of each variant by kind of question]({plot})", ""]
    lines += _accuracy_tables(sweep, results) + _costs(sweep, results) + _comparisons(sweep, results)
    return "\n".join(lines).rstrip() + "\n"


def write_markdown(path: Path, report: str, command: str = "ablate") -> None:
    """Write a report, or put it between the marks of a file that has them.

    Args:
        path: The file.
        report: Markdown.
        command: Whose report it is; the marks name it.

    Raises:
        ValueError: The file exists and has no marks.
    """
    begin, end = BEGIN.format(command=command), END.format(command=command)
    text = path.read_text(encoding="utf-8") if path.is_file() else f"{begin}\n{end}\n"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(
            f"expected the lines {begin} and {end} once each in {path}, which exists. Add them where the tables "
            "belong, or name another file."
        )
    before, after = text.split(begin)[0], text.split(end)[1]
    with atomic_file(path) as temporary:
        temporary.write_text(f"{before}{begin}\n{report}{end}{after}", encoding="utf-8")


def draw_sweep(sweep: SweepSettings, results: Results, path: Path) -> None:
    """One column per kind, one row per variant: accuracy, its interval, and the reference as a line.

    Args:
        sweep: All settings.
        results: What is finished.
        path: Receives the plot; PNG, SVG or PDF by its ending.

    Raises:
        ImportError: matplotlib is missing; the message says what to type.
    """
    require("matplotlib", purpose="The plot of a sweep")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tables = _finished(sweep, results)
    rows = [(table, variant) for table, variants in tables.items() for variant in variants]
    kinds = sweep.evaluate.kinds
    columns = {**{kind: (kind,) for kind in kinds}, "mean": kinds}
    figure = Figure(figsize=(4 + 1.7 * len(columns), 1.4 + 0.3 * len(rows)), layout="constrained")
    all_axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    scores = {variant.name: collect_scores(sweep, results, variant) for _, variant in rows}
    for axes, (title, chosen) in zip(all_axes, columns.items(), strict=True):
        for place, (table, variant) in enumerate(rows):
            share = interval_of(scores[variant.name], chosen)
            reach = [[100 * max(0.0, share.value - share.low)], [100 * max(0.0, share.high - share.value)]]
            is_reference = sweep.reference_of(variant) == variant
            colour = "black" if is_reference else f"C{list(tables).index(table)}"
            axes.errorbar([100 * share.value], [place], xerr=reach, fmt="o", color=colour, markersize=4, capsize=2)
            if is_reference:
                others = [k for k, (_, one) in enumerate(rows) if sweep.reference_of(one) == variant]
                axes.vlines(100 * share.value, min(others) - 0.4, max(others) + 0.4, color="0.7", linewidth=1, zorder=0)
        axes.set(title=title, xlim=(-4, 104), xticks=(0, 50, 100))
        axes.grid(axis="x", color="0.92")
        axes.set_axisbelow(True)
    all_axes[0].set_yticks(range(len(rows)), [variant.name for _, variant in rows])
    all_axes[0].invert_yaxis()
    figure.supxlabel("right answers in percent, 95 % intervals; grey: the reference of the rows beside it")
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_figure(path, dpi=110)
