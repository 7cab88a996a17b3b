"""The finished ablations as Markdown and as a plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from moai.import_utils import require
from verbalizers.core.durable_files import atomic_file

from .ablation import AblationResult
from .ablation_config import AblationConfig, Variant
from .ablation_statistics import Share, compare, mean_share, reference_of, right_answers, share_of

__all__ = ["BEGIN", "END", "draw_ablation", "markdown_report", "write_markdown"]

#: What stands between these lines of a Markdown file is replaced; the rest is left alone.
BEGIN, END = "<!-- moai ablate: begin -->", "<!-- moai ablate: end -->"

Results = Mapping[tuple[str, int], AblationResult]


def _cell(share: Share) -> str:
    return f"{100 * share.value:.0f} ({100 * share.low:.0f}-{100 * share.high:.0f})"


def _finished(config: AblationConfig, results: Results) -> dict[str, list[Variant]]:
    """Variants with results, by table, in the order of the settings."""
    tables: dict[str, list[Variant]] = {}
    for variant in config.variants:
        if any((variant.name, seed) in results for seed in config.seeds):
            tables.setdefault(variant.table, []).append(variant)
    return tables


def _row(config: AblationConfig, results: Results, variant: Variant) -> str:
    right = right_answers(config, results, variant)
    cells = [_cell(share_of(right, kind)) for kind in config.test.kinds]
    return f"| {variant.label} | {len(right)} | " + " | ".join([*cells, _cell(mean_share(right))]) + " |"


def _accuracy_tables(config: AblationConfig, results: Results) -> list[str]:
    kinds = config.test.kinds
    lines: list[str] = []
    for table, variants in _finished(config, results).items():
        lines += [
            f"### {table}",
            "",
            "| | seeds | " + " | ".join([*kinds, "mean"]) + " |",
            "|---" * (len(kinds) + 3) + "|",
        ]
        first = reference_of(config, variants[0])
        if first not in variants and any((first.name, seed) in results for seed in config.seeds):
            lines.append(_row(config, results, first))
        lines += [_row(config, results, variant) for variant in variants]
        lines.append("")
    return lines


def _orderings(config: AblationConfig, results: Results) -> list[str]:
    lines = [
        "### The paper's orderings",
        "",
        "| variant | compared with | at | difference in points | |",
        "|---|---|---|---|---|",
    ]
    for variant in config.variants:
        found = compare(config, results, variant)
        if found is None:
            continue
        at = "all kinds" if set(found.kinds) == set(config.test.kinds) else ", ".join(found.kinds)
        value, low, high = (
            100 * number for number in (found.difference.value, found.difference.low, found.difference.high)
        )
        cells = (variant.label, reference_of(config, variant).name, at, f"{value:+.1f} ({low:+.1f} to {high:+.1f})")
        lines.append(
            "| "
            + " | ".join(f"{variant.name}: {c}" if c is variant.label else c for c in cells)
            + f" | {found.verdict} |"
        )
    return [*lines, ""] if len(lines) > 4 else []


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _what_it_took(config: AblationConfig, results: Results) -> str:
    training, loop = config.recipe.questions, config.recipe.questions.loop
    seconds = sum(result.train_seconds + result.test_seconds for result in results.values())
    trained = sum(result.train_seconds > 0 for result in results.values())
    missing = len([v for v in config.variants if not any((v.name, seed) in results for seed in config.seeds)])
    pictures = "with pictures" if training.shards.with_pictures else "without pictures"
    test, first_steps = config.test, training.first_stage_steps
    text = f"{len(results)} runs of {len({name for name, _ in results})} variants, {trained} of them trained"
    if trained:
        text += (
            f": {loop.num_steps} steps of {training.batch_size} scenes with at most {training.questions_per_scene} "
            f"questions each, stage 1 for the first {first_steps} steps where both stages run"
        )
    text += (
        f". Start: stage `{config.start_stage}`, {pictures}. Asked: {test.per_kind} questions per kind about scenes "
        f"of {test.num_objects[0]} to {test.num_objects[1]} objects, verbalizers' noise {test.noise:g}. Wall time "
        f"{_duration(seconds)}."
    )
    return text + (f" {missing} variants are not finished." if missing else "")


def markdown_report(config: AblationConfig, results: Results, plot: str | None = None) -> str:
    """Tables of accuracy, the paper's orderings, time.

    Args:
        config: All settings.
        results: What is finished.
        plot: Path of the plot relative to the Markdown file.
    """
    lines = [_what_it_took(config, results), ""]
    if plot is not None:
        lines += [f"![Accuracy of each variant by kind of question]({plot})", ""]
    lines += _accuracy_tables(config, results)
    lines += _orderings(config, results)
    return "\n".join(lines).rstrip() + "\n"


def write_markdown(path: Path, report: str) -> None:
    """Write a report, or put it between the marks of a file that has them.

    Args:
        path: The file.
        report: Markdown.

    Raises:
        ValueError: The file exists and has no marks.
    """
    text = f"{BEGIN}\n{END}\n"
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
            raise ValueError(
                f"expected the lines {BEGIN} and {END} once each in {path}, which exists. Add them where the tables "
                "belong, or name another file."
            )
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    with atomic_file(path) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n{report}{END}{after}", encoding="utf-8")


def draw_ablation(config: AblationConfig, results: Results, path: Path) -> None:
    """One column per kind, one row per variant: accuracy, its interval, and the reference as a line.

    Args:
        config: All settings.
        results: What is finished.
        path: Receives the picture; PNG, SVG or PDF by its ending.

    Raises:
        ImportError: matplotlib is missing; the message says what to type.
    """
    require("matplotlib", purpose="The plot of the ablations")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tables = _finished(config, results)
    rows = [(table, variant) for table, variants in tables.items() for variant in variants]
    columns = [*config.test.kinds, "mean"]
    figure = Figure(figsize=(4 + 1.7 * len(columns), 1.4 + 0.3 * len(rows)), layout="constrained")
    all_axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    answers = {variant.name: right_answers(config, results, variant) for _, variant in rows}
    for axes, column in zip(all_axes, columns, strict=True):
        for place, (table, variant) in enumerate(rows):
            right = answers[variant.name]
            share = mean_share(right) if column == "mean" else share_of(right, column)
            reach = [[100 * max(0.0, share.value - share.low)], [100 * max(0.0, share.high - share.value)]]
            is_reference = reference_of(config, variant) == variant
            colour = "black" if is_reference else f"C{list(tables).index(table)}"
            axes.errorbar([100 * share.value], [place], xerr=reach, fmt="o", color=colour, markersize=4, capsize=2)
            if is_reference:
                others = [k for k, (_, one) in enumerate(rows) if reference_of(config, one) == variant]
                axes.vlines(100 * share.value, min(others) - 0.4, max(others) + 0.4, color="0.7", linewidth=1, zorder=0)
        axes.set(title=column, xlim=(-4, 104), xticks=(0, 50, 100))
        axes.grid(axis="x", color="0.92")
        axes.set_axisbelow(True)
    all_axes[0].set_yticks(range(len(rows)), [variant.name for _, variant in rows])
    all_axes[0].invert_yaxis()
    figure.supxlabel("right answers in percent, 95 % intervals; grey: the reference of the rows beside it")
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_figure(path, dpi=110)
