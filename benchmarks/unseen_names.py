"""Whether a model says names, and reads words, that it has never met, and knows what sorts of things names are of: from
words alone, without an image.

    python -m benchmarks.unseen_names FOLDER OTHER_FOLDER --scenes 300

Things of validation scenes have other names, in the words and in questions and answers together
(:mod:`moai.scenes.renaming`): English words that no training has, one in seven made-up syllables, of which it may
have met some. Counted are the questions whose answer is such a name, and those that ask what a sign says, whose words
no training has. Findings are true.

Sorts ("Is there a tool?", "What bird is this?") are asked of validation scenes seen from nearer, half of which have
their own names and half the nouns of training, for what a word that nobody has met means cannot be known. What there
is none of is asked for as often ("There is no bird."). `commonest` is who always gives a kind's commonest answer.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from random import Random
from typing import Any

import torch

from moai.checkpoints.io.lookup import find_checkpoint
from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from moai.evaluation.intervals import wilson_interval
from moai.evaluation.scene_answers import is_right
from moai.evaluation.tables import format_share, format_table
from moai.models.moai.modeling_moai import MoAIForConditionalGeneration
from moai.models.moai.processing_moai import MoAIProcessor
from moai.scenes.questions import SceneQuestion
from moai.scenes.renaming import rename_scene
from moai.scenes.scenes import Scenes
from moai.scenes.vocabulary import OBJECT_CLASSES, STUFF_NAMES
from verbalizers.core.scene import verbalize_scene
from verbalizers.core.words import WordSettings

__all__ = ["KINDS", "SORTS", "answer_told", "commonest_answers", "sort_questions", "unseen_questions"]

KINDS = ("recognition", "object_relation", "comparison", "reading")
SORTS = ("existence", "counting", "recognition")
_LONGEST_ANSWER = 32

Told = Iterable[tuple[str, list[SceneQuestion]]]


def unseen_questions(num_scenes: int, words: WordSettings | None = None) -> Told:
    """Words about validation scenes with other names, and the questions whose answers no training has met.

    Args:
        num_scenes: Of the stream's first; those without such a question are left out.
        words: How the scenes are told; None = the default.
    """
    options = {"image_size": 96, "num_questions": 14, "sign_probability": 0.8, "forged_share": 0.0}
    stream = Scenes("validation", kinds=KINDS, length=num_scenes, **options)
    known = {*OBJECT_CLASSES, *STUFF_NAMES}
    for sample in stream:
        scene, asked = rename_scene(sample.truth, sample.questions, Random(sample.index), "validation")
        kept = [q for q in asked if not q.earlier and (q.kind == "reading" or q.answer not in known)]
        if kept:
            yield verbalize_scene(scene, settings=words), kept


def _plain(answer: str) -> str:
    return "none" if answer.startswith("There is no ") else answer


def sort_questions(num_scenes: int, words: WordSettings | None = None) -> Told:
    """Words about parts of validation scenes, every other with nouns of training, and the questions about sorts.

    Of kind "recognition" are those too whose answer is that there is none. No answer is that of more than half of a
    kind's questions.

    Args:
        num_scenes: Of the stream's first; those without such a question are left out.
        words: How the scenes are told; None = the default.
    """
    options = {"image_size": 96, "num_questions": 12, "sign_probability": 0.0, "closeup_share": 1.0}
    taken: dict[str, Counter[str]] = {kind: Counter() for kind in SORTS}
    for sample in Scenes("validation", kinds=(*SORTS, *SORTS, "absence"), length=num_scenes, **options):
        scene, asked = sample.truth, sample.questions
        if sample.index % 2:
            scene, asked = rename_scene(scene, asked, Random(sample.index))
        kept = []
        for question in asked:
            if not question.is_sort or question.earlier:
                continue
            question = replace(question, kind="recognition") if question.kind == "absence" else question
            answers, answer = taken[question.kind], _plain(question.answer)
            if 2 * answers[answer] <= answers.total():
                answers[answer] += 1
                kept.append(question)
        if kept:
            yield verbalize_scene(scene, settings=words), kept


@torch.no_grad()
def answer_told(
    model: MoAIForConditionalGeneration, processor: MoAIProcessor, told: Told
) -> tuple[Counter[str], Counter[str]]:
    """Ask a model.

    Args:
        model: In evaluation mode.
        processor: Its own.
        told: Words, and the questions to ask about them.

    Returns:
        Questions asked and answered rightly, by kind.
    """
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for findings, questions in told:
        inputs = processor(auxiliary_text=[findings] * len(questions), questions=[q.question for q in questions])
        said = model.generate(**inputs, max_new_tokens=_LONGEST_ANSWER)[:, inputs["input_ids"].shape[1] :]
        for question, answer in zip(questions, processor.batch_decode(said, skip_special_tokens=True), strict=True):
            asked[question.kind] += 1
            right[question.kind] += is_right(question.answer, answer)
    return asked, right


def commonest_answers(told: Told) -> Counter[str]:
    """How many questions of each kind have its commonest answer; that there is none is one, whatever is asked for."""
    answers: dict[str, Counter[str]] = {}
    for _, questions in told:
        for question in questions:
            answers.setdefault(question.kind, Counter())[_plain(question.answer)] += 1
    return Counter({kind: max(its.values()) for kind, its in answers.items()})


def _share(right: int, asked: int) -> dict[str, Any] | None:
    return {"value": right / asked, "interval95": wilson_interval(right, asked)} if asked else None


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Whether models say names they never met, and know what is a bird.")
    parser.add_argument("models", nargs="+", help="folders or bundled names of MoAIs")
    parser.add_argument("--scenes", type=int, default=300)
    chosen = parser.parse_args()
    parts = ((unseen_questions, KINDS, ""), (sort_questions, SORTS, " of a sort"))
    rows: list[list[str]] = [[kind + of, "0"] for _, kinds, of in parts for kind in kinds]
    commonest: list[str] = []
    for name in chosen.models:
        folder = find_checkpoint(name)
        model = MoAIForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        processor = MoAIProcessor.from_pretrained(folder)
        words = VerbalizerSettings.load(folder).words
        columns, commonest = [], []
        for ask, kinds, _ in parts:
            told = list(ask(chosen.scenes, words))
            asked, right = answer_told(model, processor, told)
            columns += [(asked[kind], format_share(_share(right[kind], asked[kind]))) for kind in kinds]
            guessed = commonest_answers(told)
            commonest += [format_share(_share(guessed[kind], asked[kind])) for kind in kinds]
        for row, (number, share) in zip(rows, columns, strict=True):
            row[1] = str(number)
            row.append(share)
    rows = [[*row, guess] for row, guess in zip(rows, commonest, strict=True)]
    print(format_table(["question", "asked", *chosen.models, "commonest"], rows, 1))


if __name__ == "__main__":
    main()
