"""A test by its settings: its questions, in the words that it wants."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from .file_questions import collect_file_questions
from .question_settings import FileTest, TestSettings
from .questions import TestQuestion
from .scene_questions import collect_scene_questions
from .wordings import add_paraphrases, read_paraphrases

__all__ = ["Test", "load_test"]


@dataclass(frozen=True)
class Test:
    """What a model is asked.

    Attributes:
        settings: How.
        questions: In order; ids are unique.
        problems: Rows of the file that cannot be asked, and why.
    """

    __test__ = False

    settings: TestSettings
    questions: tuple[TestQuestion, ...]
    problems: tuple[str, ...] = field(default=())


def load_test(settings: TestSettings) -> Test:
    """Collect a test's questions; of a file the images are read once, for their content.

    Raises:
        ValueError: The test cannot be read, has no question, or asks to rank choices that its questions lack.
    """
    problems: list[str] = []
    questions: Iterable[TestQuestion]
    if isinstance(settings, FileTest):
        questions = collect_file_questions(settings, problems)
    else:
        questions = collect_scene_questions(settings)
    if settings.paraphrases is not None:
        questions = add_paraphrases(questions, read_paraphrases(settings.paraphrases))
    asked = [_with_suffix(question, settings.suffix) for question in questions]
    if not asked:
        told = f" The first row: {problems[0]}." if problems else ""
        raise ValueError(f"expected questions to ask, got none.{told}")
    if settings.ranks and (lacking := [q.id for q in asked if len(set(q.choices)) < 2]):
        raise ValueError(
            f"expected two different `choices` or more of every question to rank, got fewer for {len(lacking)}, the "
            f"first {lacking[0]!r}. Name their key under `keys`, or leave `ranks` out."
        )
    return Test(settings, tuple(asked), tuple(problems))


def _with_suffix(question: TestQuestion, suffix: str) -> TestQuestion:
    return replace(question, question=f"{question.question} {suffix.strip()}") if suffix.strip() else question
