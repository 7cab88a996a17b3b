"""What the mixture costs: ours, the released algorithm's form, and the bare backbone, side by side.

    python -m benchmarks.forward                  # the whole table, CPU
    python -m benchmarks.forward --rounds 5 --json outputs/forward.json
    python -m benchmarks.forward --size 7b --phases prefill decode --batches 1 --no-memory
    python -m benchmarks.forward --llava --batches 1 4 8 --rounds 5 --clock cpu

(a) ours       MoAIForConditionalGeneration with the released compressor architecture (perceiver)
(a+) encoder   the same with our order-aware compressor, the default for new models
(b) release    the released algorithm's form over (a)'s weights (release_form.py), checked to agree with (a)
(c) backbone   transformers' own decoder and head with (a)'s weights; no compressor, no mixers

--size small   MoAI-7B's proportions at hidden size 256: 8 layers, 2 mixers, 8 heads over 2 key-value heads,
               feed-forward 3.5 D, 1225 image and 64 text tokens in the decoder, 1289 auxiliary tokens (64 words,
               1225 map patches), float32
--size 7b      InternLM2-7B's layers, two of its 32, one with a mixer: hidden size 4096, 32 heads over 8, feed-forward
               14336, 576 image and 64 text tokens, 832 auxiliary tokens (256 words, 576 map patches), bfloat16

--llava sets a whole MoAI (a checkpoint, the bundled one by default) beside LlavaForConditionalGeneration with the same
vision tower and decoder instead: processor, prefill, decode, generate, training step, memory.

Image and map features are given, so the vision tower, equal wherever it is used, is in no number. No partial LoRA.

Prefill        a prompt to its next token's logits, filling the cache
Decode         one token after that prompt
Training step  forward, loss on the last 16 tokens, backward; all weights trainable

Operations are counted while the call runs (flops.py), times are taken in turn; a ratio is the median of the ratios of
calls that stood side by side. On a busy machine set OMP_WAIT_POLICY=PASSIVE: threads that spin while they wait for one
another take the processor from the thread they wait for. --clock cpu then leaves out the time other programs took.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.flops import count_flops, describe_moai_7b
from benchmarks.forward_peer import describe_llava
from benchmarks.forward_tables import to_markdown
from benchmarks.forward_variants import (
    NUM_DECODE_STEPS,
    PHASES,
    SIZES,
    VARIANTS,
    Sizes,
    build_runner,
    build_runners,
    largest_difference,
)
from benchmarks.measurement import describe_machine, measure_in_fresh_process, peak_memory_mib, time_alternating

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def measure_times(
    sizes: Sizes,
    batches: list[int],
    num_rounds: int,
    device: torch.device,
    phases: tuple[str, ...] = PHASES,
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict]:
    """Count and time every phase and batch size; one record each."""
    records = []
    for batch in batches:
        runners = build_runners(sizes, batch, device)
        for phase in phases:
            for runner in runners.values():
                runner.prefill()
            calls: dict[str, Callable[[], None]] = {name: getattr(runner, phase) for name, runner in runners.items()}
            per_call = NUM_DECODE_STEPS if phase == "decode" else 1
            flops = {}
            for name, call in calls.items():
                flops[name] = {kind: number // per_call for kind, number in asdict(count_flops(call)).items()}
            times = time_alternating(calls, num_rounds * per_call, device, clock=clock)
            records.append(
                {
                    "phase": phase,
                    "batch": batch,
                    "flops": flops,
                    "times_ms": {name: [value / per_call for value in values] for name, values in times.items()},
                    "largest_difference": largest_difference(runners, phase),
                }
            )
    return records


def measure_memory(records: list[dict], arguments: argparse.Namespace) -> None:
    """Add ``peak_mib`` of every variant to the records, each from a process of its own."""
    for record in records:
        record["peak_mib"] = {}
        for variant in VARIANTS:
            options = ["--measure-memory-of", variant, record["phase"], str(record["batch"])]
            options += ["--size", arguments.size, "--device", arguments.device, "--threads", str(arguments.threads)]
            record["peak_mib"][variant] = measure_in_fresh_process("benchmarks.forward", options)["peak_mib"]


def print_memory_of_one(arguments: argparse.Namespace) -> None:
    """The fresh process: build one variant, run it small once, measure one phase, print JSON."""
    variant, phase, batch = arguments.measure_memory_of
    device, sizes = torch.device(arguments.device), SIZES[arguments.size]
    runner = build_runner(variant, sizes, int(batch), device)
    if phase == "decode":
        runner.prefill()
    # Kernels load lazily and threads take their stacks once: neither belongs to the measured call.
    warm_sizes = replace(sizes, image_grid=2, num_text_tokens=32)
    warm = build_runner(variant, warm_sizes, 1, device)
    warm.prefill()
    getattr(warm, phase)()
    del warm
    print(json.dumps({"peak_mib": peak_memory_mib(getattr(runner, phase), device)}))


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.forward",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds per phase and batch size")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: processor time of all threads, for a busy machine"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory measurements")
    parser.add_argument("--json", type=Path, help="write every single measurement here")
    parser.add_argument(
        "--llava", nargs="?", const="checkpoints/moai-nano", metavar="CHECKPOINT", help="a MoAI beside LLaVA instead"
    )
    parser.add_argument("--measure-memory-of", nargs=3, metavar=("VARIANT", "PHASE", "BATCH"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the tables, write the JSON."""
    parsed = parse_arguments(arguments)
    torch.set_num_threads(parsed.threads)
    if parsed.measure_memory_of:
        print_memory_of_one(parsed)
        return
    device = torch.device(parsed.device)
    machine = describe_machine(device)
    machine += ", processor time" if parsed.clock == "cpu" else ""
    if parsed.llava:
        print(f"{machine}\n")
        print(describe_llava(parsed.llava, parsed.batches, parsed.rounds, device, CLOCKS[parsed.clock]))
        return
    measured = (SIZES[parsed.size], parsed.batches, parsed.rounds, device, tuple(parsed.phases))
    records = measure_times(*measured, CLOCKS[parsed.clock])
    if not parsed.no_memory:
        measure_memory(records, parsed)
    print(to_markdown(machine, records))
    if parsed.size == "7b":
        print(describe_moai_7b())
    if parsed.json:
        parsed.json.parent.mkdir(parents=True, exist_ok=True)
        report = {"machine": machine, "size": parsed.size, "rounds": parsed.rounds, "records": records}
        parsed.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
