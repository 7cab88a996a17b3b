"""What re-routing is worth (docs/evaluation.md): conditions and seeds of `moai reroute`, pooled in one table.

    python -m benchmarks.rerouting --out runs/rerouting

References come from the validation split once per condition, the kernel is chosen there; each test seed is answered
once. The oracle is asked other, fewer questions: it needs all routings. The same command goes on after a kill.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from benchmarks.measurement import markdown_table
from moai.cli import app
from moai.evaluation.intervals import wilson_interval
from moai.evaluation.question_settings import load_test_settings
from moai.evaluation.result_folder import RESULTS_FILE
from moai.models.moai.rerouting import References
from moai.settings import to_plain

KINDS = ("existence", "counting", "recognition", "localisation", "ground_relation", "reading")
#: Settings of the test by the name of a condition.
CONDITIONS = {
    "normal": (),
    "noise3": ("noise=3",),
    "ocr": ("verbalizers=[ocr]",),
    "live": ("verbalizations=live",),
}
METHODS = ("model", "static", "static-per-kind", "picked", "picked-shuffled", "averaged", "averaged-shuffled")


def run_once(out: Path, words: Sequence[str]) -> dict[str, Any]:
    """The content of a run's ``results.json``; a folder that holds answers of other settings is refused."""
    with redirect_stdout(StringIO()):
        app(["reroute", *words, "--steps", "0", "--out", str(out), "--json"], standalone_mode=False)
    return json.loads((out / RESULTS_FILE).read_text(encoding="utf-8"))


def run_condition(name: str, chosen: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Results of each seed, and those with the oracle.

    Raises:
        ValueError: The folder has references of other settings.
    """
    settings = [f"kinds=[{','.join(chosen.kinds)}]", *CONDITIONS[name], *chosen.settings]
    known, wanted = chosen.out / f"{name}-ref", [f"per_kind={chosen.references}", *settings]
    references = known / "references" / "references.safetensors"
    if not references.is_file():
        run_once(known, [chosen.model, "scenes", *wanted, "--no-oracle"])
    test = json.loads(json.dumps(to_plain(load_test_settings("scenes", [*wanted, "split=validation"]))))
    if References.load(references).content["test"] != test:
        raise ValueError(f"expected references of these settings in {known}, got others. Name another --out.")

    def run(folder: str, per_kind: int, seed: int, *more: str) -> dict[str, Any]:
        words = [f"per_kind={per_kind}", f"seed={seed}", *settings, "--seed", str(seed), *more]
        return run_once(chosen.out / folder, [chosen.model, "scenes", *words, "--references", str(references)])

    runs = [run(f"{name}-{seed}", chosen.per_kind, seed, "--no-oracle") for seed in chosen.seeds]
    return runs, run(f"{name}-oracle", chosen.oracle, max(chosen.seeds) + 1)


def describe_method(runs: Sequence[Mapping[str, Any]], method: str) -> str:
    """Percent right of all runs' questions with Wilson's interval, and how it does against the gates."""
    tables = [run["results"][method] for run in runs]
    asked, right = (sum(next(iter(table.values()))[name] for table in tables) for name in ("asked", "right"))
    low, high = wilson_interval(right, asked)
    told = f"{100 * right / asked:.1f} ({100 * low:.1f}-{100 * high:.1f})"
    if method == "model":
        return told
    against = [next(iter(run["against_model"][method].values())) for run in runs]
    gates, own = (sum(row[name] for row in against) for name in ("only_first", "only_second"))
    if not gates + own:
        return f"{told} [the gates]"
    return f"{told} [{gates}/{own}, {binomtest(gates, gates + own).pvalue:.2g}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="moai-nano")
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--per-kind", type=int, default=134, help="questions of each seed")
    parser.add_argument("--references", type=int, default=100, help="reference questions per kind")
    parser.add_argument("--oracle", type=int, default=40, help="questions per kind that the oracle is asked")
    parser.add_argument("--settings", nargs="*", default=[], help="further settings of the tests")
    chosen = parser.parse_args(arguments)
    found = {name: run_condition(name, chosen) for name in chosen.conditions}
    rows = [[f"`{method}`", *(describe_method(runs, method) for runs, _ in found.values())] for method in METHODS]
    bounds, asked = [], 0
    for _, bound in found.values():
        gates, oracle = (next(iter(bound["results"][name].values())) for name in ("model", "oracle"))
        bounds.append(f"{100 * gates['value']:.1f} -> {100 * oracle['value']:.1f}")
        asked = gates["asked"]
    rows.append([f"`model` -> `oracle`, {asked} other questions", *bounds])
    print("\n".join(markdown_table(["", *found], rows)))
    for name, (runs, _) in found.items():
        known = runs[0]["references"]
        share = sum(run["rerouted"] * run["asked"] for run in runs) / sum(run["asked"] for run in runs)
        print(
            f"\n{name}: {sum(run['asked'] for run in runs)} questions, {known['questions']} references, "
            f"{known['num_neighbours']} neighbours, bandwidth {known['bandwidth']}, static: {runs[0]['static']}, "
            f"picked another routing than the gates: {100 * share:.1f} %"
        )


if __name__ == "__main__":
    main()
