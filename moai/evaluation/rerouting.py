"""What re-routing is worth: references from one test, one run on another, and who must be beaten.

- ``model``: the gates. ``static``: the routing that loses least over the references; ``static-per-kind``: by kind.
- ``picked``: of each question's own neighbours (:meth:`.References.pick`); ``averaged``: their best routings' mean, as
  in R2-T2; ``descended``: gradient steps on their loss. ``picked-shuffled`` and ``averaged-shuffled``: neighbours
  whose losses are another reference's.
- ``oracle``: right where any routing is; no method, a bound, for which the test is answered under all of them.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from moai.models.moai.rerouting import (
    References,
    descend,
    embed_prompts,
    fingerprint_mixers,
    fit_kernel,
    list_routings,
    score_answers,
)
from moai.pipeline.pipeline import Pipeline
from moai.pipeline.queries import pair_queries
from moai.settings import to_plain
from verbalizers.core.durable_files import atomic_file, hold_folder, write_json
from verbalizers.core.verbalizer import fingerprint_checkpoint

from .conditions import MODEL, Condition
from .evaluate import Looking, answer_test, metric_of
from .loading import Test, load_test
from .question_settings import load_test_settings
from .questions import TestQuestion
from .result_folder import ResultFolder
from .running import describe_test, format_masks
from .summary import compare_rows, format_summary, summarise

__all__ = ["REFERENCES_FILE", "ReroutingRun", "build_references", "describe_rerouting", "run_rerouting"]

REFERENCES_FILE = "references.safetensors"
AVERAGED, AVERAGED_SHUFFLED, DESCENDED = "averaged", "averaged-shuffled", "descended"
#: Questions per file of a run's parts.
_PART = 32
#: Neighbours whose loss is descended, at most: each step reads them all.
_MOST_DESCENDED = 8
#: Pixels of the references' images that are kept, with what was found in them, for the next question's neighbours.
_KEPT_PIXELS = 2**28


@dataclass(frozen=True)
class ReroutingRun:
    """How a run goes.

    Attributes:
        out: Folder of the results.
        num_steps: Of the descent; 0 = none.
        batch_size: Questions per batch; decides nothing.
        timeout_s: Seconds per image for a verbalizer.
        seed: Of the shuffled neighbours.
        has_oracle: The test is answered under every routing, not only under those that a method chose.
        is_overwriting: Begin anew.
    """

    out: Path
    num_steps: int = 5
    batch_size: int = 32
    timeout_s: float | None = 60.0
    seed: int = 0
    has_oracle: bool = True
    is_overwriting: bool = False


def encode_questions(
    pipeline: Pipeline, looking: Looking, questions: Sequence[TestQuestion]
) -> tuple[list[TestQuestion], Any]:
    """The questions that can be asked, and the model's inputs for them."""
    looking.look([question.image for question in questions])
    asked = [question for question in questions if question.image.key in looking.seen]
    if not asked:
        return [], None
    images, scenes = zip(*(looking.seen[question.image.key] for question in asked), strict=True)
    queries = pair_queries(
        list(images), [each.question for each in asked], list(scenes), [each.earlier for each in asked]
    )
    pipeline.prepare_queries(queries, 1)
    queries, inputs, _ = pipeline.encode_queries([each for each in queries if each.error is None], 1, {})
    return [asked[query.index] for query in queries], inputs


def encode_answers(pipeline: Pipeline, questions: Sequence[TestQuestion], inputs: Any) -> list[list[int]]:
    """Token ids of the questions' (commonest) right answers."""
    commonest = [Counter(question.answers).most_common(1)[0][0] for question in questions]
    return [pipeline.answering.encode_choice(answer, inputs) for answer in commonest]


def _write_part(path: Path, tensors: Mapping[str, torch.Tensor], content: Mapping[str, Any]) -> None:
    with atomic_file(path) as temporary:
        save_file(
            {name: value.contiguous() for name, value in tensors.items()}, temporary,
            {"references": json.dumps(dict(content))},
        )  # fmt: skip


def _read_part(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}, json.loads(file.metadata()["references"])  # noqa: SIM118


def _list_parts(test: Test) -> Iterator[tuple[int, Sequence[TestQuestion]]]:
    for first in range(0, len(test.questions), _PART):
        yield first // _PART, test.questions[first : first + _PART]


def build_references(
    load: Callable[[], Pipeline],
    test: Test,
    run: ReroutingRun,
    deciding: Mapping[str, Any],
    show: Callable[[int, str], None] = lambda num_done, counts: None,
) -> Path:
    """Score the right answers of a test under each routing; a killed run goes on.

    Args:
        load: Loads the model; called only where something is open.
        test: Questions with answers.
        run: How; its folder gets ``references/``.
        deciding: What decides the scores beside the test.
        show: Told how many questions are scored.

    Returns:
        ``references.safetensors``.

    Raises:
        ValueError: The folder holds references of something else, or nothing can be asked.
    """
    folder = run.out / "references"
    with hold_folder(folder):
        if run.is_overwriting:
            for file in folder.glob("*.safetensors"):
                file.unlink()
        ResultFolder(folder, ()).check({**deciding, **describe_test(test)}, run.is_overwriting)
        path = folder / REFERENCES_FILE
        if path.is_file():
            return path
        pipeline: Pipeline | None = None
        parts = [(folder / f"part-{number:05d}.safetensors", asked) for number, asked in _list_parts(test)]
        for number, (part, asked) in enumerate(parts):
            if not part.is_file():
                if pipeline is None:
                    pipeline = load()
                    looking = Looking(pipeline, test, run.timeout_s)
                _write_part(part, *_score_part(pipeline, looking, asked))
                looking.forget({question.image.key for question in asked[-1:]})
            show(min((number + 1) * _PART, len(test.questions)), "")
        read = [_read_part(part) for part, _ in parts]
        questions = [question for _, content in read for question in content["questions"]]
        if not questions:
            raise ValueError("expected references that the model can be asked, got none. Name another test.")
        tensors = {name: torch.cat([part[name] for part, _ in read if part]) for name in ("embeddings", "losses")}
        size, bandwidth, losses = fit_kernel(
            tensors["embeddings"], tensors["losses"], [question["image"] for question in questions]
        )
        told = {"num_neighbours": size, "bandwidth": bandwidth, "leave_one_image_out": losses, "questions": questions}
        told |= {"test": to_plain(test.settings)}
        told |= next({name: content[name] for name in ("fingerprint", "num_layers")} for _, content in read if content)
        write_json(folder / "references.json", told)
        _write_part(path, tensors, told)
        for part, _ in parts:
            part.unlink()
    return path


@torch.no_grad()
def _score_part(
    pipeline: Pipeline, looking: Looking, questions: Sequence[TestQuestion]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    model = pipeline.model
    routings = list_routings(len(model.config.mixer_config.layers))
    content = {"fingerprint": fingerprint_mixers(model), "num_layers": routings.shape[1], "questions": []}
    questions, inputs = encode_questions(pipeline, looking, questions)
    if not questions:
        return {}, content
    answers = encode_answers(pipeline, questions, inputs)
    gated = score_answers(model, inputs, answers)
    columns = [gated.losses, *(score_answers(model, inputs, answers, one, **gated.encoded).losses for one in routings)]
    content["questions"] = [{"id": each.id, "kind": each.kind, "image": each.image.key} for each in questions]
    return {"embeddings": gated.embeddings, "losses": torch.stack(columns, dim=1).float().cpu()}, content


class Chooser:
    """Routings of a test's questions, by references; what costs time is kept in parts.

    Args:
        load: The pipeline.
        test: What is asked.
        references: From :func:`build_references`.
        run: How.

    Attributes:
        picked: By question, 0 = the gates, else the number of a routing.
        picked_shuffled: Likewise, of shuffled neighbours.
        weights: By condition and question, ``(M, 2, 3)``.
        seconds: By what is done, per question.
    """

    def __init__(
        self, load: Callable[[], Pipeline], test: Test, references: References, run: ReroutingRun,
        show: Callable[[int, str], None],
    ) -> None:  # fmt: skip
        self.test, self.references, self.run = test, references, run
        self.picked: dict[str, int] = {}
        self.picked_shuffled: dict[str, int] = {}
        self.weights: dict[str, dict[str, torch.Tensor]] = {AVERAGED: {}, AVERAGED_SHUFFLED: {}, DESCENDED: {}}
        seconds: Counter[str] = Counter()
        order = torch.randperm(len(references.losses), generator=torch.Generator().manual_seed(run.seed))
        shuffled, looking = references.losses[order], None
        for number, questions in _list_parts(test):
            path = run.out / f"choices-{number:05d}.safetensors"
            if not path.is_file():
                if looking is None:
                    pipeline = load()
                    references.check(pipeline.model)
                    looking = Looking(pipeline, test, run.timeout_s)
                    self._neighbours = _Neighbours(pipeline, references, run)
                _write_part(path, *self._work(pipeline, looking, questions))
                looking.forget({question.image.key for question in questions[-1:]})
            tensors, content = _read_part(path)
            show(min((number + 1) * _PART, len(test.questions)), "")
            seconds.update(content["seconds"])
            ids = content["ids"]
            if not ids:
                continue
            embeddings, gates = tensors["embeddings"], tensors["gates"]
            self.picked |= zip(ids, references.pick(embeddings).tolist(), strict=True)
            self.picked_shuffled |= zip(ids, references.pick(embeddings, shuffled).tolist(), strict=True)
            self.weights[AVERAGED] |= zip(ids, references.average(embeddings, gates), strict=True)
            self.weights[AVERAGED_SHUFFLED] |= zip(ids, references.average(embeddings, gates, shuffled), strict=True)
            if run.num_steps:
                self.weights[DESCENDED] |= zip(ids, tensors["descended"], strict=True)
        self.seconds = {name: total / len(test.questions) for name, total in seconds.items()}

    def _work(
        self, pipeline: Pipeline, looking: Looking, questions: Sequence[TestQuestion]
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        questions, inputs = encode_questions(pipeline, looking, questions)
        if not questions:
            return {}, {"ids": [], "seconds": {}}
        begun = time.process_time()
        scored = embed_prompts(pipeline.model, inputs)
        tensors, seconds = {"embeddings": scored.embeddings, "gates": scored.gates}, {}
        seconds["embed"] = time.process_time() - begun
        if self.run.num_steps:
            begun = time.process_time()
            tensors["descended"] = self._neighbours.descend(scored.embeddings, tensors["gates"])
            seconds["descend"] = time.process_time() - begun
        return tensors, {"ids": [question.id for question in questions], "seconds": seconds}

    def choose(self, name: str) -> Callable[[Sequence[TestQuestion]], dict[str, Any]]:
        """Options of questions under a condition."""
        found = self.weights[name]
        shape = (len(self.references.routings[0]), 2, 3)

        def choose_options(questions: Sequence[TestQuestion]) -> dict[str, Any]:
            return {"routing": torch.stack([found.get(each.id, torch.ones(shape)) for each in questions])}

        return choose_options


class _Neighbours:
    """The references' questions, to be asked again."""

    def __init__(self, pipeline: Pipeline, references: References, run: ReroutingRun) -> None:
        self.pipeline, self.references, self.run = pipeline, references, run
        self._looking: Looking | None = None

    def descend(self, embeddings: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        """Routing weights ``(Q, M, 2, 3)`` after gradient steps from ``gates``."""
        if self._looking is None:
            test = load_test(load_test_settings(self.references.content["test"]))
            self._looking = Looking(self.pipeline, test, self.run.timeout_s)
            self._questions = {question.id: question for question in test.questions}
        rows = [self.references.content["questions"][place]["id"] for place in range(len(self.references.losses))]
        found = []
        places, shares = self.references.find_neighbours(embeddings)
        for near, share, start in zip(places[:, :_MOST_DESCENDED], shares[:, :_MOST_DESCENDED], gates, strict=True):
            asked = [self._questions[rows[place]] for place in near.tolist()]
            questions, inputs = encode_questions(self.pipeline, self._looking, asked)
            answers = encode_answers(self.pipeline, questions, inputs)
            kept = [asked.index(question) for question in questions]
            found.append(descend(self.pipeline.model, inputs, answers, share[kept], start, self.run.num_steps))
            if sum(image.width * image.height for image, _ in self._looking.seen.values()) > _KEPT_PIXELS:
                self._looking.seen.clear()
        return torch.stack(found)


def run_rerouting(
    load: Callable[[], Pipeline],
    name: str,
    test: Test,
    references_path: Path,
    run: ReroutingRun,
    deciding: Mapping[str, Any],
    show: Callable[[int, str], None] = lambda num_done, counts: None,
) -> dict[str, Any]:
    """Answer a test under the routings and by every method; a killed run goes on.

    Args:
        load: Loads the model.
        name: Of the model.
        test: What is asked, once.
        references_path: From :func:`build_references`.
        run: How.
        deciding: What decides the answers beside test and references.
        show: Told how many questions are answered.

    Returns:
        The content of ``results.json``.

    Raises:
        ValueError: The folder holds results of something else, or the references are another model's.
    """
    references = References.load(references_path)
    routings = references.routings
    methods = [AVERAGED, AVERAGED_SHUFFLED, *([DESCENDED] if run.num_steps else [])]
    with hold_folder(run.out):
        if run.is_overwriting:
            for file in run.out.glob("choices-*.safetensors"):
                file.unlink()
        own = {"references": fingerprint_checkpoint(references_path), "steps": run.num_steps, "shuffled": run.seed}
        own["oracle"] = run.has_oracle
        ResultFolder(run.out, ()).check({**deciding, **describe_test(test), **own}, run.is_overwriting)
        chooser = Chooser(load, test, references, run, show)
        chosen = _list_chosen(test, references, chooser)
        used = {each for part in chosen.values() for each in part}
        if run.has_oracle:
            used |= set(range(1, 1 + len(routings)))
        fixed = {number: f"routing-{number:02d}" for number in sorted(used - {0})}
        results = ResultFolder(run.out, [MODEL, *fixed.values(), *methods])
        starts, seconds = results.resume(run.batch_size, len(test.questions)), dict(chooser.seconds)
        num_open = sum(max(0, len(test.questions) - start * run.batch_size) for start in starts.values())
        if num_open:
            pipeline = load()
            conditions = [Condition(MODEL, pipeline)]
            for number, each in fixed.items():
                routing = routings[number - 1]
                conditions.append(Condition(each, pipeline, choose_options=lambda asked, r=routing: {"routing": r}))
            conditions += [Condition(each, pipeline, choose_options=chooser.choose(each)) for each in methods]
            begun, num_done = time.process_time(), min(starts.values()) * run.batch_size
            for batch in answer_test(
                pipeline, test, conditions, batch_size=run.batch_size, starts=starts, timeout_s=run.timeout_s
            ):
                results.append(batch.rows)
                num_done += len(batch.questions)
                show(num_done, "")
            seconds["answer"] = (time.process_time() - begun) / num_open
        content = _collect(results, name, test, references, chosen, fixed, methods, run.has_oracle)
        content |= {"made_of": {**deciding, **describe_test(test), **own}, "cpu_seconds_per_question": seconds}
        results.write_results(content)
    return content


def _list_chosen(test: Test, references: References, chooser: Chooser) -> dict[str, list[int]]:
    """By method and question of the test, 0 = the gates, else the number of a routing."""
    losses, kinds = references.losses, [question["kind"] for question in references.content["questions"]]
    static = int(losses.mean(dim=0).argmin())
    per_kind = {
        kind: int(losses[[place for place, each in enumerate(kinds) if each == kind]].mean(dim=0).argmin())
        for kind in dict.fromkeys(kinds)
    }
    return {
        "static": [static] * len(test.questions),
        "static-per-kind": [per_kind.get(question.kind, static) for question in test.questions],
        "picked": [chooser.picked.get(question.id, 0) for question in test.questions],
        "picked-shuffled": [chooser.picked_shuffled.get(question.id, 0) for question in test.questions],
    }


def _collect(
    results: ResultFolder, name: str, test: Test, references: References, chosen: Mapping[str, Sequence[int]],
    fixed: Mapping[int, str], methods: Sequence[str], has_oracle: bool,
) -> dict[str, Any]:  # fmt: skip
    names = {0: MODEL, **fixed}
    rows = {each: results.read(each) for each in (*names.values(), *methods)}
    found = {MODEL: rows[MODEL]}
    for each, numbers in chosen.items():
        found[each] = [rows[names[number]][place] for place, number in enumerate(numbers)]
    found |= {each: rows[each] for each in methods}
    if has_oracle:
        found["oracle"] = [
            max((rows[each][place] for each in names.values()), key=lambda row: row["score"])
            for place in range(len(test.questions))
        ]
    by_kind = zip(test.questions, chosen["static-per-kind"], strict=True)
    metric = metric_of(test)
    return {
        "model": name,
        "asked": len(test.questions),
        "references": {
            "questions": len(references.losses),
            "num_neighbours": references.num_neighbours,
            "bandwidth": references.bandwidth,
            "leave_one_image_out": references.content["leave_one_image_out"],
        },
        "static": names[chosen["static"][0]],
        "static_per_kind": {question.kind: names[number] for question, number in by_kind},
        "rerouted": sum(number > 0 for number in chosen["picked"]) / len(test.questions),
        "results": {each: summarise(test.questions, part, metric) for each, part in found.items()},
        "against_model": {each: compare_rows(found[MODEL], part) for each, part in found.items() if each != MODEL},
        "routings": {each: references.routings[number - 1][0].tolist() for number, each in fixed.items()},
    }


def describe_rerouting(content: Mapping[str, Any]) -> str:
    """Results as a user reads them.

    Args:
        content: Of ``results.json``.
    """
    told, seconds = content["references"], content["cpu_seconds_per_question"]
    costs = ", ".join(f"{name} {value:.3f}" for name, value in seconds.items())
    return "\n".join(
        [
            format_summary(content["results"]),
            "",
            format_masks(content["against_model"]),
            "",
            f"{told['questions']} references, {told['num_neighbours']} neighbours, bandwidth {told['bandwidth']}; "
            f"static: {content['static']}; picked another routing than the gates: {100 * content['rerouted']:.1f} %",
            f"CPU seconds per question and answer: {costs}",
        ]
    )
