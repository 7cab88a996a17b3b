"""What starting costs: processor time of imports and wall time of the command's help, each in fresh processes.

    python -m benchmarks.cold_start
    python -m benchmarks.cold_start --rounds 3 --only page.png

An import of ours stands beside what a user of transformers imports for the same purpose; a command beside an
interpreter that does nothing. Processes alternate, A B A B ...; medians [quartiles]; the ratio is taken round by round.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.measurement import Spread, describe_machine, paired_ratio

ROOT = Path(__file__).resolve().parent.parent
HELP = "from moai.cli import app; app({arguments}, prog_name='moai')"


@dataclass(frozen=True)
class Pair:
    """Two scripts to compare, and the name under which ours is printed."""

    ours: str
    reference: str
    name: str = ""


IMPORTS = [
    Pair("import moai", "import torch, transformers"),
    Pair("import moai; from transformers import AutoConfig", "from transformers import AutoConfig"),
    Pair("import moai; from transformers import AutoTokenizer", "from transformers import AutoTokenizer"),
    Pair(
        "from moai import MoAIForConditionalGeneration, MoAIProcessor",
        "from transformers import LlavaForConditionalGeneration, LlavaProcessor",
    ),
    Pair(
        "import sys; sys.argv = ['moai', 'ask', 'examples/page.png', 'What is this?']; "
        "from moai.__main__ import main; main()",
        "from transformers import LlavaForConditionalGeneration, LlavaProcessor",
        'moai ask examples/page.png "What is this?"',
    ),
]
COMMANDS = [
    Pair(HELP.format(arguments=arguments), "pass", " ".join(["moai", *arguments]))
    for arguments in (["--help"], ["ask", "--help"], ["train", "--help"])
]


def time_process(script: str) -> tuple[float, float]:
    """Run a script in a fresh interpreter.

    Returns:
        Seconds of processor time (user and system, of all its threads), and of wall time.

    Raises:
        subprocess.CalledProcessError: The script fails.
    """
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return cpu, wall


def measure(pairs: list[Pair], num_rounds: int, is_wall: bool) -> list[str]:
    """Compare pairs and describe each as a row of a Markdown table.

    Args:
        pairs: What to run.
        num_rounds: Timed rounds, after an untimed one that fills the file cache.
        is_wall: Measure wall time in place of processor time.
    """
    rows = []
    for pair in pairs:
        times: dict[str, list[float]] = {pair.ours: [], pair.reference: []}
        for round_index in range(num_rounds + 1):
            for script in times:
                seconds = time_process(script)[int(is_wall)]
                if round_index:
                    times[script].append(seconds)
        ours, reference = times[pair.ours], times[pair.reference]
        cells = [_shown(Spread.of(ours)), _shown(Spread.of(reference)), _shown(paired_ratio(ours, reference))]
        rows.append(f"| `{pair.name or pair.ours}` | `{pair.reference}` | {' | '.join(cells)} |")
    return rows


def _shown(spread: Spread) -> str:
    return f"{spread.median:.2f} [{spread.lower:.2f}-{spread.upper:.2f}]"


def main(arguments: list[str] | None = None) -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds of each pair")
    parser.add_argument("--only", default="", metavar="PART", help="the pairs whose name holds this")
    parsed = parser.parse_args(arguments)
    print(describe_machine(torch.device("cpu")))
    for title, pairs, is_wall in (("processor time", IMPORTS, False), ("wall time", COMMANDS, True)):
        if chosen := [pair for pair in pairs if parsed.only in (pair.name or pair.ours)]:
            print(f"\n| {title}, seconds | beside | ours | the other | ratio |\n| --- | --- | --- | --- | --- |")
            print("\n".join(measure(chosen, parsed.rounds, is_wall)), flush=True)


if __name__ == "__main__":
    main()
