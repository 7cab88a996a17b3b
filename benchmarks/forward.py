"""What the mixture costs: ours, the released algorithm's form, and the bare backbone, side by side.

    python -m benchmarks.forward                  # the whole table, CPU
    python -m benchmarks.forward --rounds 5 --json outputs/forward.json

(a) ours       MoAIForConditionalGeneration with the released compressor architecture (perceiver)
(a+) encoder   the same with our order-aware compressor, the default for new models
(b) release    the released algorithm's form over (a)'s weights (release_form.py), checked to agree with (a)
(c) backbone   transformers' own decoder and head with (a)'s weights; no compressor, no mixers

Proportions are MoAI-7B's at hidden size 256: 8 layers, 2 mixers, 8 heads over 2 key-value heads, feed-forward
3.5 D, 1225 image and 64 text tokens in the decoder, 1289 auxiliary tokens (64 words, 1225 map patches),
float32. Image and map features are given, so the vision tower, equal wherever it is used, is in no number.

Prefill        a prompt to its next token's logits, filling the cache
Decode         one token after that prompt
Training step  forward, loss on the last 16 tokens, backward; all weights trainable
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.forward_variants import (
    BACKBONE,
    ENCODER,
    NUM_DECODE_STEPS,
    OURS,
    PHASES,
    RELEASE,
    VARIANTS,
    Sizes,
    build_runner,
    build_runners,
    largest_differences,
)
from benchmarks.measurement import (
    Spread,
    describe_machine,
    measure_in_fresh_process,
    paired_ratio,
    peak_memory_mib,
    time_alternating,
)


def measure_times(sizes: Sizes, batches: list[int], num_rounds: int, device: torch.device) -> list[dict]:
    """Time every phase and batch size; one record each."""
    records = []
    for batch in batches:
        runners = build_runners(sizes, batch, device)
        differences = largest_differences(runners)
        for phase in PHASES:
            for runner in runners.values():
                runner.prefill()
            calls: dict[str, Callable[[], None]] = {name: getattr(runner, phase) for name, runner in runners.items()}
            times = time_alternating(calls, num_rounds, device)
            if phase == "decode":
                times = {name: [value / NUM_DECODE_STEPS for value in values] for name, values in times.items()}
            records.append(
                {"phase": phase, "batch": batch, "times_ms": times, "largest_difference": differences[phase]}
            )
    return records


def measure_memory(records: list[dict], arguments: argparse.Namespace) -> None:
    """Add ``peak_mib`` of every variant to the records, each from a process of its own."""
    for record in records:
        record["peak_mib"] = {}
        for variant in VARIANTS:
            options = ["--measure-memory-of", variant, record["phase"], str(record["batch"])]
            options += ["--device", arguments.device, "--threads", str(arguments.threads)]
            record["peak_mib"][variant] = measure_in_fresh_process("benchmarks.forward", options)["peak_mib"]


def print_memory_of_one(arguments: argparse.Namespace) -> None:
    """The fresh process: build one variant, run it small once, measure one phase, print JSON."""
    variant, phase, batch = arguments.measure_memory_of
    device, sizes = torch.device(arguments.device), Sizes()
    runner = build_runner(variant, sizes, int(batch), device)
    if phase == "decode":
        runner.prefill()
    # Kernels load lazily and threads take their stacks once: neither belongs to the measured call.
    warm_sizes = Sizes(image_grid=2, num_text_tokens=32)
    warm = build_runner(variant, warm_sizes, 1, device)
    warm.prefill()
    getattr(warm, phase)()
    del warm
    print(json.dumps({"peak_mib": peak_memory_mib(getattr(runner, phase), device)}))


def _milliseconds(values: list[float]) -> str:
    spread = Spread.of(values)
    return f"{spread.median:.1f} [{spread.lower:.1f}-{spread.upper:.1f}]"


def _ratio(ratio: Spread, aim: str = "") -> str:
    return f"{ratio.median:.2f} [{ratio.lower:.2f}-{ratio.upper:.2f}]{aim}"


def print_tables(records: list[dict], console: Console) -> None:
    """Print times, ratios and memory with the aims beside them."""
    times = Table(title="Milliseconds per call: median [quartiles]; decode per step")
    ratios = Table(title="Ratios: median [quartiles] over rounds; in brackets the aim")
    memory = Table(title="Peak memory of one call above weights and inputs, MiB")
    for table in (times, memory):
        for column in ("phase", "batch", "(a) ours", "(a+) encoder", "(b) release", "(c) backbone"):
            table.add_column(column, justify="left" if column == "phase" else "right")
    for column in ("phase", "batch", "b / a", "a / c", "a+ / c", "memory a / b", "largest |a - b|"):
        ratios.add_column(column, justify="left" if column == "phase" else "right")
    for record in records:
        phase, batch, measured, peak = (
            record["phase"],
            record["batch"],
            record["times_ms"],
            record.get("peak_mib"),
        )
        head = (phase, str(batch))
        times.add_row(*head, *(_milliseconds(measured[name]) for name in VARIANTS))
        speed_aim = "" if phase == "decode" else f" (>= {2 if batch == 1 else 3})"
        cost_aim = {"prefill": " (<= 1.10)", "decode": " (<= 1.02)", "training": ""}[phase]
        memory_ratio = "-"
        if peak:
            memory.add_row(*head, *(f"{peak[name]:.0f}" for name in VARIANTS))
            memory_ratio = f"{peak[OURS] / peak[RELEASE]:.2f}" if peak[RELEASE] >= 1 else "-"
            memory_ratio += " (<= 0.6)" if batch > 1 and phase != "decode" else ""
        ratios.add_row(
            *head,
            _ratio(paired_ratio(measured[RELEASE], measured[OURS]), speed_aim),
            _ratio(paired_ratio(measured[OURS], measured[BACKBONE]), cost_aim),
            _ratio(paired_ratio(measured[ENCODER], measured[BACKBONE]), cost_aim),
            memory_ratio,
            f"{record['largest_difference']:.1e}",
        )
    for table in (times, memory, ratios):
        if table.row_count:
            console.print(table)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.forward",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds per phase and batch size")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory measurements")
    parser.add_argument("--json", type=Path, help="write every single measurement here")
    parser.add_argument("--measure-memory-of", nargs=3, metavar=("VARIANT", "PHASE", "BATCH"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the tables, write the JSON."""
    parsed = parse_arguments(arguments)
    torch.set_num_threads(parsed.threads)
    if parsed.measure_memory_of:
        print_memory_of_one(parsed)
        return
    console, device = Console(width=None if Console().is_terminal else 140), torch.device(parsed.device)
    machine = describe_machine(device)
    console.print(machine)
    records = measure_times(Sizes(), parsed.batches, parsed.rounds, device)
    if not parsed.no_memory:
        measure_memory(records, parsed)
    print_tables(records, console)
    if parsed.json:
        parsed.json.parent.mkdir(parents=True, exist_ok=True)
        parsed.json.write_text(json.dumps({"machine": machine, "rounds": parsed.rounds, "records": records}, indent=1))


if __name__ == "__main__":
    main()
