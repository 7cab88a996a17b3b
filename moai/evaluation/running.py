"""A whole evaluation: answers on disk as they come, results and report at the end; a killed one goes on."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from moai.models.answering import Answering
from moai.pipeline.pipeline import DEFAULT_TIMEOUT_S, Pipeline
from moai.settings import to_plain
from verbalizers import Scene, draw_scene
from verbalizers.core.durable_files import atomic_file, hold_folder
from verbalizers.store.cache import VerbalizationCache

from .calibration import describe_confidence, format_confidence
from .conditions import MODEL, WORDS_IN_PROMPT, build_conditions, list_conditions
from .demonstrations import build_demonstrations, describe_demonstrations
from .evaluate import answer_test, metric_of
from .html_report import write_report
from .loading import Test
from .question_settings import SceneTest
from .result_folder import IMAGES_FOLDER, REPORT_FILE, ResultFolder
from .scene_questions import chance_of
from .summary import compare_rows, format_comparison, format_more, format_summary, summarise
from .tables import format_difference, format_table

__all__ = ["EvaluationRun", "describe_results", "run_evaluation"]

#: So many images stand in a report, and pixels of their longer side.
_MAX_IMAGES, _IMAGE_SIZE = 300, 320


@dataclass(frozen=True)
class EvaluationRun:
    """How an evaluation runs.

    Attributes:
        out: Folder of the results.
        baselines: Some of :data:`.conditions.BASELINES`.
        is_masking: Whether each verbalizer is silent once, and what else :func:`.conditions.list_conditions` names.
        batch_size: Questions per batch; decides no answer.
        options: The model's own, by name.
        timeout_s: Seconds per image for a verbalizer.
        generate: To ``generate``.
        is_overwriting: Begin anew.
    """

    out: Path
    baselines: tuple[str, ...] = ()
    is_masking: bool = False
    batch_size: int = 32
    options: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float | None = DEFAULT_TIMEOUT_S
    generate: Mapping[str, Any] = field(default_factory=dict)
    is_overwriting: bool = False


def run_evaluation(
    load: Callable[[], Pipeline],
    name: str,
    kinds: Sequence[str],
    test: Test,
    run: EvaluationRun,
    deciding: Mapping[str, Any],
    load_reader: Callable[[], Answering] | None = None,
    show: Callable[[int, str], None] = lambda num_done, counts: None,
    reader: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Answer what is open, and write results and report.

    Args:
        load: Loads the model; called only where something is open.
        name: Of the model, for the report.
        kinds: Kinds of findings that the model reads.
        test: What is asked.
        run: How.
        deciding: What decides the model's answers, JSON-able, one level of mappings at most.
        load_reader: Who reads words in the prompt; None = the model's own decoder.
        show: Told how many questions are answered.
        reader: Contents of the reader's files; None = the model's own decoder.

    Returns:
        The content of ``results.json``.

    Raises:
        ValueError: The folder holds results of something else; each difference is named. Another process writes there.
    """
    num_images = len({question.image.key for question in test.questions})
    names = list_conditions(kinds, run.is_masking, run.baselines, num_images)
    with hold_folder(run.out):
        results = ResultFolder(run.out, names)
        results.check({**deciding, **describe_test(test)}, run.is_overwriting)
        if WORDS_IN_PROMPT in names:
            results.check_reader(WORDS_IN_PROMPT, reader or {})
        starts = results.resume(run.batch_size, len(test.questions))
        if min(starts.values()) * run.batch_size < len(test.questions):
            _answer_open(load(), names, test, run, results, starts, load_reader, show)
        content = _collect(results, name, test, deciding)
        results.write_results(content)
        write_report(run.out / REPORT_FILE, content, test, {name: results.read(name) for name in names}, run.out)
    return content


def _answer_open(
    pipeline: Pipeline,
    names: Sequence[str],
    test: Test,
    run: EvaluationRun,
    results: ResultFolder,
    starts: Mapping[str, int],
    load_reader: Callable[[], Answering] | None,
    show: Callable[[int, str], None],
) -> None:
    reader = load_reader() if load_reader and WORDS_IN_PROMPT in names else None
    places = {key: place for place, key in enumerate(dict.fromkeys(q.image.key for q in test.questions))}
    conditions, options = build_conditions(names, pipeline, test, reader), dict(run.options)
    if (demonstrations := build_demonstrations(test.settings)) is not None:
        for condition in conditions:
            if condition.pipeline is not None and "shots" not in condition.pipeline.answering.option_names:
                raise ValueError(
                    f"expected a model that reads demonstrations under {condition.name!r}, got "
                    f"{type(condition.pipeline.model).__name__}, which does not. Leave `shots` (--shots) out."
                )
        options["shots"] = demonstrations
    batches = answer_test(
        pipeline, test, conditions, batch_size=run.batch_size, starts=starts, options=options,
        timeout_s=run.timeout_s, **run.generate,
    )  # fmt: skip
    num_done = min(starts.values()) * run.batch_size
    for batch in batches:
        for key, (image, scene) in batch.looks.items():
            if places[key] < _MAX_IMAGES:
                _save_overlay(run.out / IMAGES_FOLDER / f"{places[key]}.jpg", image, scene)
        results.append(batch.rows)
        num_done += len(batch.questions)
        show(num_done, "")


def _save_overlay(path: Path, image: Image.Image, scene: Scene) -> None:
    """A small drawing of what was found; one that is there stays."""
    if path.is_file():
        return
    try:
        drawing = draw_scene(scene, image)
    except ValueError:  # a finding of a plug-in, say
        drawing = image
    drawing = drawing.convert("RGB")
    drawing.thumbnail((_IMAGE_SIZE, _IMAGE_SIZE))
    content = io.BytesIO()
    drawing.save(content, format="JPEG", quality=80)
    with atomic_file(path) as temporary:
        temporary.write_bytes(content.getvalue())


def describe_test(test: Test) -> dict[str, Any]:
    """What decides a test's questions, each thing under a name: settings, and contents in place of paths."""
    settings = to_plain(test.settings)
    places = ("path", "image_folder", "cache", "paraphrases", "fingerprint", "shots_from")
    named = {name: value for name, value in settings.items() if name not in places}
    parts = {
        "questions": [[q.id, q.kind, q.question, q.earlier, q.wording] for q in test.questions],
        "answers": [[q.answers, q.choices] for q in test.questions],
        "images": [q.identity for q in test.questions],
    }
    named |= {name: hashlib.sha256(json.dumps(part).encode()).hexdigest()[:16] for name, part in parts.items()}
    if test.settings.source == "cache":
        named["cache"] = VerbalizationCache(test.settings.cache, test.settings.fingerprint).fingerprint
    return {"test": named | describe_demonstrations(test.settings)}


def _collect(results: ResultFolder, name: str, test: Test, deciding: Mapping[str, Any]) -> dict[str, Any]:
    metric, rows = metric_of(test), {each: results.read(each) for each in results.conditions}
    tables = {each: summarise(test.questions, part, metric) for each, part in rows.items()}
    against = {each: compare_rows(rows[MODEL], part) for each, part in rows.items() if each != MODEL}
    content: dict[str, Any] = {"model": name, "made_of": {**deciding, **describe_test(test)}}
    content |= {"asked": len(test.questions), "left_out": list(test.problems)}
    if isinstance(test.settings, SceneTest):
        content["chance"] = {kind: round(share, 6) for kind, share in chance_of(test.questions).items()}
    content |= {"results": tables, "against_model": against}
    # Descriptions are scored otherwise: they are never right or wrong.
    told = {
        each: describe_confidence([r for q, r in zip(test.questions, part, strict=True) if metric.binary(q.kind)])
        for each, part in rows.items()
    }
    return content | {"confidence": {each: found for each, found in told.items() if found is not None}}


def describe_results(content: Mapping[str, Any]) -> str:
    """Results as a user reads them: a table, what else the metric tells, and the conditions against the model.

    Args:
        content: Of ``results.json``.
    """
    parts = [format_summary(content["results"]), *format_more(content["results"])]
    if chance := content.get("chance"):
        parts.append(
            "chance: " + ", ".join(f"{kind.replace('_', ' ')} {100 * share:.1f}" for kind, share in chance.items())
        )
    if MODEL in content["confidence"]:
        parts += ["", format_confidence(content["confidence"][MODEL])]
    for name, comparison in content["against_model"].items():
        overall = {"all": next(iter(comparison.values()))}
        parts += ["", format_comparison(overall, ("model", name))] if len(content["against_model"]) == 1 else []
    if len(content["against_model"]) > 1:
        parts += ["", format_masks(content["against_model"])]
    return "\n".join(parts)


def format_masks(against: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """A Markdown table of what each condition costs, over all kinds.

    Args:
        against: By condition, what :func:`compare_rows` returned.
    """
    rows = []
    for name, comparison in against.items():
        row = next(iter(comparison.values()))
        rows.append([name, format_difference(row), row["only_first"], row["only_second"], f"{row['p']:.2g}"])
    return format_table(
        ["against the model", "difference", "model alone right", "it alone right", "McNemar p"], rows, 1
    )
