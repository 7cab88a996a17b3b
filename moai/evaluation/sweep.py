"""Sweep: every variant of a recipe is trained, tested and kept, one seed after the other.

    from moai.evaluation.sweep import run_sweep
    from moai.evaluation.sweep_settings import load_sweep_settings

    run_sweep(load_sweep_settings("configs/ablation.yaml"), start="checkpoints/moai-nano", out=Path("runs/ablation"))

A result is a JSON file that appears whole or not at all; training inside a variant goes on from its last checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import StrictBool

from moai.checkpoints.io.contents import hash_checkpoint
from moai.checkpoints.io.lookup import find_checkpoint
from moai.checkpoints.io.verbalizer_settings import VERBALIZERS_FILE, VerbalizerSettings
from moai.data.training_data import DataSettings, build_training_dataset
from moai.pipeline.pipeline import Pipeline
from moai.settings import load_settings, settings, to_plain
from moai.training.model_building import build_model, find_answering, find_task
from moai.training.run_identity import find_change
from moai.training.train_settings import load_settings as load_recipe
from moai.training.trained_parts import count_parts
from moai.training.trainer import run_training
from verbalizers.core.durable_files import hold_folder, write_json

from .evaluate import answer_test
from .loading import load_test
from .new_models import write_new_model
from .sweep_settings import SweepSettings, SweepTest, Variant

__all__ = ["Results", "SweepResult", "load_results", "run_sweep", "select_jobs"]


@settings
class SweepResult:
    """A variant's answers with one seed.

    Attributes:
        variant: Its name.
        seed: Its seed.
        fingerprint: Of all that decides the result.
        kinds: Kind of each question.
        answers: Answer to each.
        right: Whether each is right.
        train_seconds: Wall-clock time of training since the last interruption; 0 where nothing was trained.
        test_seconds: Wall-clock time of the test.
        made_of: What ``fingerprint`` is of: settings, and contents of the start and of data files.
        trained_parameters: Parameters that learned, those of the stage that trained most; 0 where nothing was trained.
        seconds_per_question: Of the test, images painted and answers generated, the model's loading left out.
        sequence_length: Tokens that the model read per question on average: image, verbalization and virtual tokens
            where they stand in its sequence.
        num_latents: Vectors per image that its layers look up beside that sequence.
    """

    variant: str
    seed: int
    fingerprint: str
    kinds: tuple[str, ...]
    answers: tuple[str, ...]
    right: tuple[StrictBool, ...]
    train_seconds: float
    test_seconds: float
    made_of: dict[str, Any] = field(default_factory=dict)
    trained_parameters: int = 0
    seconds_per_question: float = 0.0
    sequence_length: float = 0.0
    num_latents: int = 0


#: Finished results by (variant's name, seed).
Results = dict[tuple[str, int], SweepResult]


def _result_path(out: Path, variant: Variant, seed: int) -> Path:
    return out / "results" / f"{variant.name}--seed-{seed}.json"


class _Contents:
    """Contents of what a sweep reads: a checkpoint's files once, each set of data once.

    Args:
        sweep: All settings.
        start: Folder of the checkpoint that variants without a start of their own start from; None = there is none.
        out: Folder of the sweep.
    """

    def __init__(self, sweep: SweepSettings, start: str | None, out: Path) -> None:
        self.sweep, self.start, self.out, self._data = sweep, start, out, {}
        lacking = [one.name for one in sweep.variants if start is None and sweep.root_of(one).start is None]
        if lacking:
            raise ValueError(f"expected a checkpoint (--start) that {', '.join(lacking)} start from, got none.")
        self.files = {} if start is None else hash_checkpoint(start)
        verbalizers = Path(start or "") / VERBALIZERS_FILE
        if verbalizers.is_file():
            self.files[VERBALIZERS_FILE] = hashlib.sha256(verbalizers.read_bytes()).hexdigest()

    def start_of(self, variant: Variant, seed: int) -> str:
        """Folder that a variant, or the one that it goes on from, starts from; a new model is written."""
        system = self.sweep.root_of(variant).start
        if system is None:
            assert self.start is not None
            return self.start
        assert self.sweep.new_models is not None
        folder = self.out / "starts" / f"{system}--seed-{seed}--{self._digest(system, seed)}"
        write_new_model(self.sweep.new_models, system, seed, folder)
        return str(folder.resolve())

    def of(self, variant: Variant, seed: int) -> dict[str, Any]:
        """JSON-able contents behind a variant's settings."""
        sweep, data = self.sweep, {}
        for stage in sweep.stages_of(variant):
            recipe = sweep.recipe_of(variant, stage, seed, "", Path())
            for group in ("data", "validation"):
                if recipe.get(group):
                    data[f"{stage} {group}"] = self._of_data(recipe[group], variant, seed)
        system = sweep.root_of(variant).start
        start = self.files if system is None else self._of_new(system, seed)
        return {"start": start, "data": data}

    def _of_new(self, system: str, seed: int) -> dict[str, Any]:
        """What a new model is made of."""
        return {"system": system, "seed": seed, "sizes": to_plain(self.sweep.new_models)}

    def _digest(self, system: str, seed: int) -> str:
        return hashlib.sha256(json.dumps(self._of_new(system, seed), sort_keys=True).encode()).hexdigest()[:16]

    def _of_data(self, fields: Mapping[str, Any], variant: Variant, seed: int) -> dict[str, Any]:
        key = json.dumps(fields, sort_keys=True, default=str)
        if key not in self._data:
            chosen, found = DataSettings.from_dict(fields), {}
            # Of scenes that are verbalized from their truth the settings say everything.
            if any(source.path or chosen.choose_verbalizations(source) == "live" for source in chosen.sources):
                start, stage = self.start_of(variant, seed), next(iter(self.sweep.stages_of(variant)))
                recipe = load_recipe(self.sweep.recipe_of(variant, stage, seed, start, Path("out")))
                collator = find_task(recipe).collator_class(find_answering(recipe).load_processor(start))
                found = build_training_dataset(chosen, collator, VerbalizerSettings.load_pretrained(start)).identity()
            self._data[key] = json.loads(json.dumps(found))
        return self._data[key]


def _made_of(sweep: SweepSettings, variant: Variant, seed: int, contents: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a result, each thing under a name."""
    recipes, test, *before = sweep.deciding(variant, seed)
    named = {"recipes": dict(zip(sweep.stages_of(variant), recipes, strict=True)), "test": test}
    if before:
        named["recipes before"] = dict(zip(sweep.stages_of(sweep.root_of(variant)), *before, strict=True))
    return json.loads(json.dumps(named | dict(contents), default=str))


def fingerprint(sweep: SweepSettings, variant: Variant, seed: int, contents: Any) -> str:
    """Hash of everything that decides a result.

    Args:
        sweep: All settings.
        variant: Which variant.
        seed: Its seed.
        contents: JSON-able: what the files hold that the settings name.
    """
    deciding = json.dumps([sweep.deciding(variant, seed), contents], sort_keys=True, default=str)
    return hashlib.sha256(deciding.encode()).hexdigest()[:16]


def find_sweep_start(name_or_path: str | Path) -> str:
    """Absolute folder of the checkpoint that all variants start from.

    Raises:
        ValueError: There is no such folder.
    """
    folder = Path(find_checkpoint(name_or_path))
    if not folder.is_dir():
        raise ValueError(f"expected a checkpoint's folder as the start, got {str(name_or_path)!r}. Download it first.")
    return str(folder.resolve())


def load_results(sweep: SweepSettings, start: str | Path | None, out: Path) -> Results:
    """The finished results of a folder.

    Args:
        sweep: All settings.
        start: The checkpoint that variants without a start of their own start from; None = there is none.
        out: Folder of the sweep.

    Raises:
        ValueError: A result was made with other settings or is no result.
    """
    return _load_results(sweep, _contents(sweep, start, out), out)


def _contents(sweep: SweepSettings, start: str | Path | None, out: Path) -> _Contents:
    return _Contents(sweep, None if start is None else find_sweep_start(start), out)


def _load_results(sweep: SweepSettings, contents: _Contents, out: Path) -> Results:
    found: Results = {}
    for seed in sweep.seeds:
        for variant in sweep.variants:
            path = _result_path(out, variant, seed)
            if not path.is_file():
                continue
            try:
                result = load_settings(SweepResult, json.loads(path.read_text(encoding="utf-8")))
            except ValueError as error:
                raise ValueError(f"expected a result of a sweep in {path}, got {error} Remove the file.") from error
            present = contents.of(variant, seed)
            if result.fingerprint != fingerprint(sweep, variant, seed, present):
                change = find_change(result.made_of, _made_of(sweep, variant, seed, present))
                told = "" if change is None else f": `{change[0]}`: {change[1]}"
                raise ValueError(
                    f"expected results of the present settings, start and data in {out}, but {path.name} was made with "
                    f"others{told}. Choose another --out, or remove that file to have it made anew."
                )
            found[variant.name, seed] = result
    return found


def select_jobs(sweep: SweepSettings, only: tuple[str, ...] = ()) -> list[tuple[Variant, int]]:
    """What to run: seed by seed, so that whole tables are there early; what is not trained depends on no seed.

    Args:
        sweep: All settings.
        only: Names of variants; empty = all. What they are compared with takes part.
    """
    chosen = [sweep.find(name) for name in only] or list(sweep.variants)
    wanted = {one.name for variant in chosen for one in (variant, sweep.reference_of(variant), sweep.root_of(variant))}
    variants = [variant for variant in sweep.variants if variant.name in wanted]
    jobs = [(variant, sweep.seeds[0]) for variant in variants if not sweep.stages_of(variant)]
    return jobs + [(variant, seed) for seed in sweep.seeds for variant in variants if sweep.stages_of(variant)]


def train_variant(sweep: SweepSettings, variant: Variant, seed: int, start: str, folder: Path) -> str:
    """Train a variant stage by stage, or go on where it was stopped; what `moai train` prints goes to a file.

    Args:
        sweep: All settings.
        variant: Which variant.
        seed: Its seed.
        start: Folder of the checkpoint that the first stage starts from.
        folder: Receives one folder per stage and ``output.txt``.

    Returns:
        Folder of the trained model; ``start`` where the variant has no stage.

    Raises:
        KeyboardInterrupt: Stopped by Ctrl-C or SIGTERM; a checkpoint is kept.
    """
    for stage in sweep.stages_of(variant):
        if not (folder / stage / "final").is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "output.txt").open("a", encoding="utf-8") as output, redirect_stdout(output):
                result = run_training(sweep.recipe_of(variant, stage, seed, start, folder / stage))
            if not result.is_finished:
                raise KeyboardInterrupt
        start = str(folder / stage / "final")
    return start


def count_trained(sweep: SweepSettings, variant: Variant, seed: int, start: str, folder: Path) -> int:
    """Parameters that learn in the stage of a variant that trains most; see :func:`train_variant`.

    Args:
        sweep: All settings.
        variant: Which variant.
        seed: Its seed.
        start: Folder of the checkpoint that the first stage starts from.
        folder: Holds the stages' results.
    """
    counts = [0]
    for stage in sweep.stages_of(variant):
        recipe = load_recipe(sweep.recipe_of(variant, stage, seed, start, folder / stage))
        model, task = build_model(recipe, torch.device("cpu")).model, find_task(recipe)
        task.freeze(model, recipe)
        counts.append(sum(row.num_trained for row in count_parts(model, task.parts_of(model))))
        start = str(folder / stage / "final")
    return max(counts)


@dataclass(frozen=True)
class AnsweredTest:
    """A model's answers to a test, and what they took; see :class:`SweepResult`."""

    rows: list[dict[str, Any]]
    seconds_per_question: float
    sequence_length: float
    num_latents: int


def answer_variant(folder: str, test: SweepTest) -> AnsweredTest:
    """A trained model's answers, one row per question; see :func:`.evaluate.answer_test`.

    Args:
        folder: Of the model.
        test: What it is asked, and with which options.
    """
    pipeline = Pipeline.from_pretrained(folder, [])
    answering, lengths = pipeline.answering, []
    encode, learned = answering.encode, getattr(pipeline.model, "active_peft_config", None)
    num_virtual = getattr(learned, "num_virtual_tokens", None) or 0

    def counting(*arguments: Any, **named: Any) -> Any:
        batch = encode(*arguments, **named)
        lengths.extend(num_virtual + length for length in batch["attention_mask"].sum(dim=1).tolist())
        return batch

    answering.encode = counting
    asked, began = load_test(test), time.monotonic()
    batches = answer_test(
        pipeline,
        asked,
        batch_size=test.batch_size,
        options=lambda batch: answering.draw_options(test.options, (test.seed, batch)),
    )
    rows = [row for batch in batches for row in batch.rows["model"]]
    seconds = (time.monotonic() - began) / len(rows)
    return AnsweredTest(rows, round(seconds, 4), round(sum(lengths) / len(lengths), 1), answering.num_latents)


def run_sweep(
    sweep: SweepSettings,
    start: str | Path | None,
    out: Path,
    only: tuple[str, ...] = (),
    report: Callable[[str], None] = lambda line: None,
) -> Results:
    """Run what is missing.

    Args:
        sweep: All settings.
        start: The checkpoint that variants without a start of their own start from; None = there is none.
        out: Folder for results and unfinished training.
        only: Names of variants; empty = all.
        report: Told what begins and what came out.

    Returns:
        All finished results, earlier ones included.

    Raises:
        ValueError: There is no start, a name is unknown, ``out`` holds results of other settings, or another process
            writes there.
        KeyboardInterrupt: Stopped; the same call goes on from there.
    """
    with hold_folder(out):
        return _run_sweep(sweep, _contents(sweep, start, out), only, report)


def _run_sweep(
    sweep: SweepSettings, contents: _Contents, only: tuple[str, ...], report: Callable[[str], None]
) -> Results:
    out = contents.out
    jobs, results = select_jobs(sweep, only), _load_results(sweep, contents, out)

    def work_of(variant: Variant, seed: int) -> Path:
        made_by = fingerprint(sweep, variant, seed, contents.of(variant, seed))
        return out / "work" / f"{variant.name}--seed-{seed}--{made_by}"

    for number, (variant, seed) in enumerate(jobs, 1):
        if (variant.name, seed) in results:
            continue
        present, work, root = contents.of(variant, seed), work_of(variant, seed), sweep.root_of(variant)
        name = f"{number} of {len(jobs)}: {variant.name}, seed {seed}"
        report(f"{name}: training, see {work / 'output.txt'}" if sweep.stages_of(variant) else f"{name}: test")
        start = contents.start_of(variant, seed)
        if root is not variant:
            start = train_variant(sweep, root, seed, start, work_of(root, seed))
        began = time.monotonic()
        trained = train_variant(sweep, variant, seed, start, work)
        trained_at = time.monotonic()
        answered = answer_variant(trained, sweep.test_of(variant))
        result = SweepResult(
            variant.name,
            seed,
            fingerprint(sweep, variant, seed, present),
            tuple(row["kind"] for row in answered.rows),
            tuple(row["given"] for row in answered.rows),
            tuple(row["right"] for row in answered.rows),
            round(trained_at - began, 1) if sweep.stages_of(variant) else 0.0,
            round(time.monotonic() - trained_at, 1),
            _made_of(sweep, variant, seed, present),
            count_trained(sweep, variant, seed, start, work),
            answered.seconds_per_question,
            answered.sequence_length,
            answered.num_latents,
        )
        write_json(_result_path(out, variant, seed), to_plain(result))
        results[variant.name, seed] = result
        _clear(sweep, variant, work, {name for name, of_seed in results if of_seed == seed})
        if root is not variant:
            _clear(sweep, root, work_of(root, seed), {name for name, of_seed in results if of_seed == seed})
        share = 100 * sum(result.right) / len(result.right)
        spent = result.train_seconds + result.test_seconds
        report(f"{name}: {share:.1f} % right, {spent:.0f} s")
    return results


def _clear(sweep: SweepSettings, variant: Variant, work: Path, finished: set[str]) -> None:
    """Remove what a finished training left, its model too where nobody goes on from it."""
    waiting = {one.name for one in sweep.variants if one.goes_on_from == variant.name} - finished
    if not (sweep.keeps_models or waiting):
        shutil.rmtree(work, ignore_errors=True)
    for checkpoints in work.glob("*/checkpoints"):
        shutil.rmtree(checkpoints, ignore_errors=True)
