"""The ablations as one run: variant by variant and seed by seed, each finished one kept.

    from moai.evaluation.ablation import run_ablation
    from moai.evaluation.ablation_config import load_ablation_config

    run_ablation(load_ablation_config("configs/ablation.yaml"), start=Path("runs/nano"), out=Path("runs/ablation"))

A result is a JSON file that appears whole or not at all; training inside a variant goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from moai.models.moai.modeling_moai import MoAIForConditionalGeneration
from verbalizers.core.durable_files import atomic_file

from .ablation_config import START, AblationConfig, Variant
from .ablation_questions import AblationQuestion, collect_test
from .ablation_training import check_start, examine_variant, hash_start, load_start, train_variant

__all__ = ["AblationResult", "load_results", "run_ablation", "select_jobs"]

#: Called with (what is going on, jobs done, jobs in all, share of this job in 0..1).
Report = Callable[[str, int, int, float], None]


@dataclass(frozen=True)
class AblationResult:
    """What one variant with one seed answered right.

    Attributes:
        variant: Its name.
        seed: Its seed.
        fingerprint: Of the settings it was made with.
        kinds: Kind of each question.
        right: Whether each was answered right, in the same order.
        train_seconds: Wall-clock time of training, 0 where another variant's weights were tested.
        test_seconds: Wall-clock time of the test.
    """

    variant: str
    seed: int
    fingerprint: str
    kinds: tuple[str, ...]
    right: tuple[bool, ...]
    train_seconds: float
    test_seconds: float


def _result_path(out: Path, variant: Variant, seed: int) -> Path:
    return out / "results" / f"{variant.name}--seed-{seed}.json"


def _save_result(path: Path, result: AblationResult) -> None:
    values = {**result.__dict__, "kinds": list(result.kinds), "right": [int(value) for value in result.right]}
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(values) + "\n", encoding="utf-8")


def _load_result(path: Path) -> AblationResult:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values["kinds"], values["right"] = tuple(values["kinds"]), tuple(bool(value) for value in values["right"])
        return AblationResult(**values)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"expected a result of `moai ablate` in {path}, got {error}. Remove the file.") from error


def load_results(config: AblationConfig, start: Path, out: Path) -> dict[tuple[str, int], AblationResult]:
    """The finished results of a folder.

    Args:
        config: All settings.
        start: Folder of the start.
        out: Folder of the run.

    Returns:
        By (variant's name, seed).

    Raises:
        ValueError: A result was made with other settings or is no result.
    """
    weights, found = hash_start(start, config.start_stage), {}
    for seed in config.seeds:
        for variant in config.variants:
            path = _result_path(out, variant, seed)
            if not path.is_file():
                continue
            result = _load_result(path)
            if result.fingerprint != config.fingerprint(variant, seed, weights):
                raise ValueError(
                    f"expected results of the present settings and start in {out}, but {path.name} was made with "
                    "others. Choose another --out, or remove that file to have it made anew."
                )
            found[variant.name, seed] = result
    return found


def select_jobs(config: AblationConfig, only: tuple[str, ...] = ()) -> list[tuple[Variant, int]]:
    """What to run: seed by seed, so that whole tables are there early; weights right before those who borrow them.

    Args:
        config: All settings.
        only: Names of variants; empty = all. The reference always takes part, since all are compared with it.
    """
    chosen = [config.find(name) for name in only] or list(config.variants)
    wanted = {config.reference.name, *(one.name for one in chosen)}
    # The start's own weights depend on no seed.
    jobs = [(one, config.seeds[0]) for one in config.variants if one.weights_of == START and one.name in wanted]
    for seed in config.seeds:
        for variant in config.variants:
            if variant.weights_of is None:
                borrowers = [one for one in config.variants if one.weights_of == variant.name]
                jobs += [(one, seed) for one in (variant, *borrowers) if one.name in wanted]
    return jobs


class _Runner:
    """One run's state: the test, the place of weights, what was trained last."""

    def __init__(self, config: AblationConfig, start: Path, out: Path, report: Report) -> None:
        self.config, self.start, self.out, self.report = config, start, out, report
        self.weights = hash_start(start, config.start_stage)
        self._asked: list[AblationQuestion] | None = None
        self._model: tuple[str, MoAIForConditionalGeneration, float] | None = None

    @property
    def asked(self) -> list[AblationQuestion]:
        """The test, made on first use."""
        if self._asked is None:
            shards = self.config.recipe.questions.shards
            self._asked = collect_test(self.config.test, shards.image_size, shards.with_pictures)
        return self._asked

    def _folder(self, variant: Variant, seed: int) -> Path:
        fingerprint = self.config.fingerprint(variant, seed, self.weights)
        return self.out / "work" / f"{variant.name}--seed-{seed}--{fingerprint}"

    def run(self, variant: Variant, seed: int, done: int, total: int) -> AblationResult:
        """Train where nothing is borrowed, test, keep the result."""
        name = f"{variant.name}, seed {seed}"

        def train_progress(step: int, steps: int) -> None:
            self.report(f"{name}: step {step + 1} of {steps}", done, total, 0.9 * step / steps)

        def test_progress(place: int, count: int) -> None:
            self.report(f"{name}: question {place + 1} of {count}", done, total, 0.9 + 0.1 * place / count)

        model, spent = self._trained(variant, seed, train_progress)
        began = time.monotonic()
        right = examine_variant(model, self.config, variant, seed, self.start, self.asked, test_progress)
        result = AblationResult(
            variant.name,
            seed,
            self.config.fingerprint(variant, seed, self.weights),
            tuple(one.kind for one in self.asked),
            tuple(right),
            spent if variant.weights_of is None else 0.0,
            round(time.monotonic() - began, 1),
        )
        _save_result(_result_path(self.out, variant, seed), result)
        if variant.weights_of != START:
            self._tidy(variant if variant.weights_of is None else self.config.find(variant.weights_of), seed)
        return result

    def _trained(
        self, variant: Variant, seed: int, progress: Callable[[int, int], None]
    ) -> tuple[MoAIForConditionalGeneration, float]:
        """The weights that a variant is tested with, and the seconds their training took in all."""
        if variant.weights_of == START:
            if self._model is None or self._model[0] != START:
                self._model = START, load_start(self.config, self.start), 0.0
            return self._model[1:]
        trained = variant if variant.weights_of is None else self.config.find(variant.weights_of)
        folder = self._folder(trained, seed)
        if self._model is None or self._model[0] != folder.name:
            self._model = None  # the old one's memory first
            earlier, began = _read_seconds(folder), time.monotonic()
            try:
                model = train_variant(self.config, trained, seed, self.start, self.out, folder, progress)
            finally:
                seconds = round(earlier + time.monotonic() - began, 1)
                _write_seconds(folder, seconds)
            self._model = folder.name, model, seconds
        return self._model[1:]

    def _tidy(self, trained: Variant, seed: int) -> None:
        """Remove weights that nobody will borrow any more."""
        users = [one for one in self.config.variants if trained.name in (one.name, one.weights_of)]
        if all(_result_path(self.out, one, seed).is_file() for one in users):
            shutil.rmtree(self._folder(trained, seed), ignore_errors=True)


def _read_seconds(folder: Path) -> float:
    """Time that earlier, interrupted runs spent on a variant."""
    path = folder / "seconds.json"
    return float(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else 0.0


def _write_seconds(folder: Path, seconds: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "seconds.json").write_text(json.dumps(round(seconds, 1)), encoding="utf-8")


def run_ablation(
    config: AblationConfig,
    start: Path,
    out: Path,
    only: tuple[str, ...] = (),
    report: Report = lambda what, done, total, share: None,
    finished: Callable[[AblationResult], None] = lambda result: None,
) -> dict[tuple[str, int], AblationResult]:
    """Run what is missing.

    Args:
        config: All settings.
        start: Folder with tokenizer and the stage ``phrases`` of :mod:`moai.training.nano`.
        out: Folder for results and unfinished training.
        only: Names of variants; empty = all.
        report: Told what is going on.
        finished: Told each new result.

    Returns:
        All finished results by (variant's name, seed), earlier ones included.

    Raises:
        ValueError: The start is incomplete, a name is unknown, or ``out`` holds results of other settings.
        KeyboardInterrupt: Stopped; the same call goes on from there.
    """
    check_start(start, config.start_stage)
    jobs = select_jobs(config, only)
    results = load_results(config, start, out)
    runner = _Runner(config, start, out, report)
    # Small products on few cores: more threads cost more than they bring (see moai.training.loop).
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    for done, (variant, seed) in enumerate(jobs):
        if (variant.name, seed) in results:
            continue
        report(f"{variant.name}, seed {seed}: scenes", done, len(jobs), 0.0)
        results[variant.name, seed] = runner.run(variant, seed, done, len(jobs))
        finished(results[variant.name, seed])
    return results
