"""What it costs that answer tokens read auxiliary tokens and images (`mixer.mixes_answers`).

OMP_NUM_THREADS=1 python -m benchmarks.answers --size small
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from benchmarks.flops import count_flops
from benchmarks.forward_variants import NUM_DECODE_STEPS, SIZES, OursRunner, build_model, build_prompt
from benchmarks.measurement import Spread, markdown_table, paired_ratio, time_alternating

__all__ = ["measure"]


def measure(size: str, phase: str, num_rounds: int) -> list[str]:
    """Operations and processor time of one call with answers that bypass the mixture, and with answers that read.

    Args:
        size: One of :data:`benchmarks.forward_variants.SIZES`.
        phase: ``decode`` (per token) or ``training`` (16 of the words are answer).
        num_rounds: Timed rounds.

    Returns:
        A row of the table.
    """
    device = torch.device("cpu")
    model = build_model(SIZES[size], "encoder", device)
    prompt = build_prompt(SIZES[size], 1, device)
    calls: dict[str, Callable[[], None]] = {}
    flops = []
    for mixes in (False, True):
        runner = OursRunner(model, prompt)
        model.model.mixers.mixes_answers = mixes
        runner.prefill()

        def call(runner: OursRunner = runner, mixes: bool = mixes) -> None:
            model.model.mixers.mixes_answers = mixes
            getattr(runner, phase)()

        calls[str(mixes)] = call
        flops.append(count_flops(call).total)
    times = time_alternating(calls, num_rounds, device, clock=time.process_time)
    per_call = NUM_DECODE_STEPS if phase == "decode" else 1
    shown = [Spread.of([value / per_call for value in times[name]]).shown(2) for name in calls]
    ratio = paired_ratio(times["True"], times["False"]).shown(3)
    return [
        phase, *(f"{count / per_call / 1e9:.4g}" for count in flops), f"{flops[1] / flops[0]:.4f}", *shown, ratio,
    ]  # fmt: skip


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Cost of answers that read auxiliary tokens and images.")
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--phases", nargs="+", choices=("decode", "training"), default=("decode", "training"))
    parser.add_argument("--rounds", type=int, default=15)
    chosen = parser.parse_args()
    head = ["phase", "GFLOP bypassing", "reading", "ratio", "ms bypassing", "reading", "ratio"]
    rows = [measure(chosen.size, phase, chosen.rounds) for phase in chosen.phases]
    print("\n".join(markdown_table(head, rows)))


if __name__ == "__main__":
    main()
