"""Whether a model says names, and reads words, that it has never met: from words alone, without an image.

    python -m benchmarks.unseen_names FOLDER OTHER_FOLDER --scenes 300

Things of validation scenes have other names, in the words and in questions and answers together
(:mod:`moai.scenes.renaming`): English words that no training has, one in seven made-up syllables, of which it may
have met some. Counted are the questions whose answer is such a name, and those that ask what a sign says, whose words
no training has. Findings are true.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
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

__all__ = ["answer_unseen", "unseen_questions"]

KINDS = ("recognition", "object_relation", "comparison", "reading")
_LONGEST_ANSWER = 32


def unseen_questions(num_scenes: int, words: WordSettings | None = None) -> Iterator[tuple[str, list[SceneQuestion]]]:
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


@torch.no_grad()
def answer_unseen(
    model: MoAIForConditionalGeneration, processor: MoAIProcessor, num_scenes: int, words: WordSettings | None = None
) -> tuple[Counter[str], Counter[str]]:
    """Ask a model.

    Args:
        model: In evaluation mode.
        processor: Its own.
        num_scenes: See :func:`unseen_questions`.
        words: Likewise.

    Returns:
        Questions asked and answered rightly, by kind.
    """
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for findings, questions in unseen_questions(num_scenes, words):
        inputs = processor(auxiliary_text=[findings] * len(questions), questions=[q.question for q in questions])
        said = model.generate(**inputs, max_new_tokens=_LONGEST_ANSWER)[:, inputs["input_ids"].shape[1] :]
        for question, answer in zip(questions, processor.batch_decode(said, skip_special_tokens=True), strict=True):
            asked[question.kind] += 1
            right[question.kind] += is_right(question.answer, answer)
    return asked, right


def _share(right: int, asked: int) -> dict[str, Any] | None:
    return {"value": right / asked, "interval95": wilson_interval(right, asked)} if asked else None


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Whether models say names that they have never met.")
    parser.add_argument("models", nargs="+", help="folders or bundled names of MoAIs")
    parser.add_argument("--scenes", type=int, default=300)
    chosen = parser.parse_args()
    rows: list[list[str]] = [[kind, "0"] for kind in KINDS]
    for name in chosen.models:
        folder = find_checkpoint(name)
        model = MoAIForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        words = VerbalizerSettings.load(folder).words
        asked, right = answer_unseen(model, MoAIProcessor.from_pretrained(folder), chosen.scenes, words)
        for row in rows:
            kind = row[0]
            row[1] = str(asked[kind])
            row.append(format_share(_share(right[kind], asked[kind])))
    print(format_table(["question", "asked", *chosen.models], rows, 1))


if __name__ == "__main__":
    main()
