"""Scenes benchmark: accuracy per kind of question on scenes nobody trained on, with and without auxiliary tokens.

    python -m moai.evaluation.scenes_benchmark --model checkpoints/moai-nano --per-kind 1000 --json evaluation.json

Verbalizations are the truth with realistic noise (`scene_noise`): what is measured is the model, not a detector. With
``--real all`` the checkpoint's own verbalizers look at the images instead, and the whole chain is measured. Looking
takes most of the time; look once, and ask as often as you like:

    python -m moai.scenes.export --split test --length 300 --out scenes
    moai verbalize scenes/questions.jsonl --model checkpoints/moai-nano --out scenes/verbalizations
    python -m moai.evaluation.scenes_benchmark --model checkpoints/moai-nano --cache scenes/verbalizations
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moai.checkpoints.io.lookup import find_checkpoint
from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from moai.data.findings import FindingsReader
from moai.scenes.scenes import QUESTION_KINDS, SCENES_VERSION, Scenes
from verbalizers.core.registry import build_verbalizer
from verbalizers.core.verbalizer import Verbalizer
from verbalizers.store.cache import VerbalizationCache

from .evaluate import (
    Answered,
    Answerer,
    AskedQuestion,
    answer_questions,
    ask,
    collect_questions,
    load_model,
    summarise,
)
from .intervals import wilson_interval
from .metrics import is_right
from .report import format_table
from .text_reader import TextReader

__all__ = ["AskedQuestion", "collect_questions", "evaluate_scenes", "markdown_table", "summarise"]

#: What a model is shown: everything; the image alone; everything with a black image, or with another scene's.
CONDITIONS = ("with_auxiliary", "without_auxiliary", "black_image", "wrong_image")
#: A language model without image that reads the whole verbalization.
TEXT_READER = "text_reader"
#: A MoAI that was trained without auxiliary tokens, and sees the image.
PICTURE_READER = "trained_without_auxiliary"
#: The answer that training questions of the same kind have most often: what a model gets without looking.
MOST_FREQUENT = "most_frequent"
_NUM_COUNTED = 2000  # training scenes whose answers are counted


def evaluate_scenes(
    model: Any,
    processor: Any,
    questions: Iterable[AskedQuestion],
    conditions: Sequence[str] = CONDITIONS,
    batch_size: int = 32,
    text_reader: TextReader | None = None,
    picture_reader: Any = None,
) -> dict[str, Answered]:
    """Ask everything under each condition.

    Args:
        model: MoAIForConditionalGeneration in evaluation mode.
        processor: Its processor.
        questions: What is asked.
        conditions: Some of :data:`CONDITIONS`.
        batch_size: Questions per batch.
        text_reader: A baseline to ask as well, under the condition ``text_reader``.
        picture_reader: Another model, of the same processor, to ask with the image alone, under the condition
            ``trained_without_auxiliary``.

    Returns:
        By condition: pairs of question and answer.
    """

    def show(reader: Any, condition: str) -> Answerer:
        has_auxiliary = condition != "without_auxiliary"
        return lambda part, bound: answer_questions(reader, processor, _shown(part, condition), has_auxiliary, bound)

    def read(part: Sequence[AskedQuestion], bound: int) -> list[str]:
        said, questions = [item.auxiliary_text for item in part], [item.question for item in part]
        return text_reader.answer(said, questions, bound, [item.earlier for item in part])

    answerers = {name: show(model, name) for name in conditions}
    if picture_reader is not None:
        answerers[PICTURE_READER] = show(picture_reader, "without_auxiliary")
    if text_reader is not None:
        answerers[TEXT_READER] = read
    return ask(questions, answerers, batch_size)


def _shown(part: Sequence[AskedQuestion], condition: str) -> Sequence[AskedQuestion]:
    """Questions with the image that a condition shows."""
    if condition == "black_image":
        return [replace(item, image=np.zeros_like(item.image)) for item in part]
    if condition == "wrong_image":
        images = {id(item.image): item.image for item in part}
        others = dict(zip(images, [*list(images.values())[1:], *list(images.values())[:1]], strict=True))
        return [replace(item, image=others[id(item.image)]) for item in part]
    return part


def most_frequent_answers(kinds: Sequence[str] = QUESTION_KINDS, num_scenes: int = _NUM_COUNTED) -> dict[str, str]:
    """By kind, the commonest answer to the training split's questions.

    Args:
        kinds: Which kinds.
        num_scenes: How many scenes are asked about.
    """
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    for sample in Scenes("train", image_size=96, kinds=tuple(kinds), length=num_scenes):
        for asked in sample.questions:
            counts[asked.kind][asked.answer] += 1
    return {kind: answers.most_common(1)[0][0] for kind, answers in counts.items() if answers}


def chance_of(questions: Sequence[AskedQuestion]) -> dict[str, float]:
    """By kind, how often a guess among what the scene offers is right; kinds that offer nothing are left out."""
    shares: dict[str, list[float]] = {}
    for item in questions:
        if item.options and item.kind != "description":
            hits = sum(is_right(item.answer, option) for option in item.options)
            shares.setdefault(item.kind, []).append(hits / len(item.options))
    return {kind: sum(found) / len(found) for kind, found in shares.items()}


def markdown_table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """A table with one column per condition and three rows per kind: all, trained and never trained wordings.

    Args:
        results: By condition, what :func:`summarise` returned.
    """
    names = list(results)
    rows = []
    for kind in [kind for kind in QUESTION_KINDS if any(kind in rows for rows in results.values())]:
        label = f"{kind} (name F1)" if kind == "description" else kind.replace("_", " ")
        for part in ("all", "trained", "never_trained"):
            found = [results[name][kind] if part == "all" else results[name][kind].get(part) for name in names]
            if found[0] is not None:
                cells = ["-" if row is None else _cell(row) for row in found]
                rows.append([label, part.replace("_", " "), found[0]["asked"], *cells])
    return format_table(["question", "wordings", "asked", *(name.replace("_", " ") for name in names)], rows)


def _cell(row: dict[str, Any]) -> str:
    low, high = row["interval95"]
    return f"{100 * row['value']:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def overall_line(condition: str, rows: dict[str, dict[str, Any]]) -> str:
    """Right answers over all kinds that have one right answer; descriptions have none.

    Args:
        condition: What the answers were given under.
        rows: What :func:`summarise` returned.
    """
    counted = [row for row in rows.values() if "right" in row]
    right, asked = (sum(row[name] for row in counted) for name in ("right", "asked"))
    low, high = wilson_interval(right, asked) if asked else (0.0, 1.0)
    share = f"{100 * right / max(asked, 1):.1f} %, {100 * low:.1f}-{100 * high:.1f}"
    lines = [f"{condition.replace('_', ' ')}: {right} of {asked} right ({share})"]
    halves = [(name, [row[name] for row in counted if name in row]) for name in ("trained", "never_trained")]
    told = [
        f"{name.replace('_', ' ')} wordings {100 * sum(r['right'] for r in part) / sum(r['asked'] for r in part):.1f} %"
        for name, part in halves
        if part
    ]
    answerable = [row for kind, row in rows.items() if "abstained" in row and kind not in ("absence", "outside")]
    if answerable:
        wrongly = sum(row["abstained"] * row["asked"] for row in answerable) / sum(row["asked"] for row in answerable)
        told.append(f"abstained from {100 * wrongly:.1f} % of what can be answered")
    if (described := rows.get("description")) is not None:
        told.append(f"descriptions with a repeated clause {100 * described['repeated']:.1f} %")
        told.append(f"with something absent {100 * described['absent']:.1f} %")
    return "; ".join([*lines, *told])


def _real_verbalizers(checkpoint: str, kinds: Sequence[str]) -> tuple[list[Verbalizer], VerbalizerSettings]:
    """The checkpoint's own for "all", else one of each kind with default settings; and what it is used to read."""
    settings = VerbalizerSettings.load(find_checkpoint(checkpoint))
    if "all" not in kinds:
        return [build_verbalizer(kind) for kind in kinds], settings
    built, absent = settings.build()
    if absent:
        raise ImportError(f"expected all verbalizers of {checkpoint}, got none for {absent}. Install what they name.")
    return built, settings


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Accuracy on test scenes, with and without auxiliary tokens.")
    parser.add_argument("--model", required=True, help="checkpoint folder")
    parser.add_argument("--per-kind", type=int, default=1000, help="questions per kind")
    parser.add_argument(
        "--split", choices=("validation", "test"), default="test", help="validation to choose between checkpoints"
    )
    parser.add_argument("--noise", type=float, default=1.0, help="strength of the verbalizers' errors, 0 = truth")
    parser.add_argument("--kind", choices=QUESTION_KINDS, action="append", help="ask only these")
    parser.add_argument(
        "--real",
        action="append",
        default=[],
        metavar="VERBALIZER",
        help="let this one look, e.g. ocr; all: the checkpoint's own",
    )
    parser.add_argument("--cache", type=Path, help="verbalizations of the split's exported scenes, by moai verbalize")
    parser.add_argument("--text-reader", type=Path, help="ask this language model too: it reads whole verbalizations")
    parser.add_argument("--picture-reader", help="ask this MoAI too, with the image alone")
    parser.add_argument("--image-size", type=int, default=448, help="pixels")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--condition", choices=CONDITIONS, action="append", help="run only this one")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--markdown", type=Path, help="write the table there")
    parser.add_argument("--show", type=int, default=0, help="print so many answers per condition")
    chosen = parser.parse_args(arguments)
    if chosen.cache and chosen.real:
        parser.error("expected --cache or --real, got both. The cache holds what real verbalizers found.")

    started = time.monotonic()
    model, processor = load_model(chosen.model)
    picture_reader = None if chosen.picture_reader is None else load_model(chosen.picture_reader)[0]
    kinds = tuple(chosen.kind or QUESTION_KINDS)
    verbalizers, spoken = _real_verbalizers(chosen.model, chosen.real)
    cached = None if chosen.cache is None else FindingsReader(VerbalizationCache(chosen.cache))
    questions = collect_questions(
        chosen.per_kind,
        chosen.noise,
        chosen.image_size,
        split=chosen.split,
        kinds=kinds,
        verbalizers=verbalizers,
        words=spoken.words,
        reader=cached,
    )
    conditions = tuple(chosen.condition or CONDITIONS)
    reader = None if chosen.text_reader is None else TextReader.from_pretrained(chosen.text_reader)
    answered = evaluate_scenes(model, processor, questions, conditions, chosen.batch_size, reader, picture_reader)
    if not any(answered.values()):
        parser.error(
            f"expected findings of {chosen.split} scenes at {chosen.image_size} pixels in {chosen.cache}, got none of "
            f"the first scene. Write and verbalize them: python -m moai.scenes.export --split {chosen.split}"
        )
    if "with_auxiliary" in answered:
        guessed = most_frequent_answers(kinds)
        answered[MOST_FREQUENT] = [(item, guessed.get(item.kind, "")) for item, _ in answered["with_auxiliary"]]
    results = {condition: summarise(pairs) for condition, pairs in answered.items()}
    print(table := markdown_table(results))
    chance = chance_of([item for item, _ in next(iter(answered.values()))])
    print("chance: " + ", ".join(f"{kind} {100 * share:.1f} %" for kind, share in chance.items()))
    for condition, rows in results.items():
        print(overall_line(condition, rows))
    for condition, pairs in answered.items():
        for item, given in pairs[: chosen.show]:
            print(f"{condition} | {item.kind} | {item.question} | expected: {item.answer} | got: {given}")
    findings = {"real": chosen.real} if chosen.real else {"noise": chosen.noise}
    if cached is not None:  # names alone: settings hold paths of the machine where the verbalizers looked
        looked = [f"{entry['kind']}/{entry['backend']}" for entry in cached.settings.verbalizers or ()]
        findings = {"verbalizers": looked, "fingerprint": cached.cache.fingerprint}
    settings = {"scenes": SCENES_VERSION, "split": chosen.split, "seed": 0, **findings, "image_size": chosen.image_size}
    report = {"settings": settings, "seconds": round(time.monotonic() - started, 1)}
    report |= {"chance": chance, "results": results}
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if chosen.markdown:
        chosen.markdown.write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
