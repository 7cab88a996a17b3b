"""The tables of benchmarks/forward.py: operations, times, their ratios, memory."""

from __future__ import annotations

from benchmarks.flops import FlopCount
from benchmarks.forward_variants import BACKBONE, ENCODER, OURS, RELEASE, VARIANTS
from benchmarks.measurement import Spread, markdown_table, paired_ratio

LETTERS = {OURS: "a", ENCODER: "a+", RELEASE: "b", BACKBONE: "c"}
COMPARED = ((OURS, BACKBONE), (ENCODER, BACKBONE), (RELEASE, OURS))
HEAD = ["phase", "batch"]
TIME_AIM = 1.05  # time ratio in units of the ratio of operations


def _ratios(record: dict, above: str, below: str) -> list[str]:
    """One row: operations and time of a variant in units of another's."""
    counts = {name: FlopCount(**record["flops"][name]) for name in (above, below)}
    carried_out = counts[above].total / counts[below].total
    in_full = counts[above].total_in_full / counts[below].total_in_full
    time = paired_ratio(record["times_ms"][above], record["times_ms"][below])
    phase, aim = record["phase"], ""
    if below == BACKBONE:
        aim = {"prefill": " (<= 1.10)", "decode": " (<= 1.02)", "training": ""}[phase]
    elif phase != "decode":
        aim = f" (>= {2 if record['batch'] == 1 else 3})"
    quotient = f"{time.median / carried_out:.3f}" + (f" (<= {TIME_AIM})" if below == BACKBONE else "")
    return [
        phase, str(record["batch"]), f"{LETTERS[above]} / {LETTERS[below]}", f"{carried_out:.3f}",
        time.shown(3) + aim, quotient, f"{in_full:.3f}", f"{time.median / in_full:.3f}",
    ]  # fmt: skip


def _memory(record: dict) -> list[str]:
    peak = record["peak_mib"]
    ratio = f"{peak[OURS] / peak[RELEASE]:.2f}" if peak[RELEASE] >= 1 else "-"
    ratio += " (<= 0.6)" if record["batch"] > 1 and record["phase"] != "decode" else ""
    return [record["phase"], str(record["batch"]), *(f"{peak[name]:.0f}" for name in VARIANTS), ratio]


def _operations(count: FlopCount) -> str:
    return f"{count.products / 1e9:.4g} + {count.attention / 1e9:.4g}"


def to_markdown(machine: str, records: list[dict]) -> str:
    """The report.

    Args:
        machine: Where it was measured.
        records: One per phase and batch size, as ``measure_times`` and ``measure_memory`` make them.

    Returns:
        Markdown; aims stand in round brackets, quartiles in square ones.
    """
    names = [f"({LETTERS[name]}) {name}" for name in VARIANTS]
    rounds = max(len(record["times_ms"][OURS]) for record in records)
    heads = [[record["phase"], str(record["batch"])] for record in records]
    ratios = [_ratios(record, *pair) for record in records for pair in COMPARED]
    tables = {
        "Operations of one call, GFLOP: matrix products + attention": markdown_table(
            HEAD + names,
            [
                head + [_operations(FlopCount(**record["flops"][name])) for name in VARIANTS]
                for head, record in zip(heads, records, strict=True)
            ],
        ),
        "Milliseconds per call: median [quartiles]; decode per step": markdown_table(
            [*HEAD, *names, "largest difference of a and b"],
            [
                [
                    *head,
                    *(Spread.of(record["times_ms"][name]).shown() for name in VARIANTS),
                    f"{record['largest_difference']:.1e}",
                ]
                for head, record in zip(heads, records, strict=True)
            ],
        ),
        "Ratios; the last two columns count causal attention in full, masked half included": markdown_table(
            [*HEAD, "ratio", "FLOP", "time", "time / FLOP", "FLOP in full", "time / FLOP in full"], ratios
        ),
    }
    if all("peak_mib" in record for record in records):
        tables["Peak memory of one call above weights and inputs, MiB"] = markdown_table(
            [*HEAD, *names, "a / b"], [_memory(record) for record in records]
        )
    lines = [f"{machine}; at most {rounds} rounds"]
    for title, table in tables.items():
        lines += ["", f"### {title}", "", *table]
    return "\n".join(lines) + "\n"
