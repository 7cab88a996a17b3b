"""``moai ask --questions FILE --out FILE``: bad lines are skipped, a killed run is continued."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verbalizers import Scene

from ..data.question_files import AnswerFile, QuestionRow, read_questions
from .answer_settings import AnswerSettings, read_scene
from .rendering import note, print_json

if TYPE_CHECKING:
    from ..pipeline.answers import Answer
    from ..pipeline.pipeline import Pipeline

__all__ = ["answer_file"]

#: Rows of a question file that are held in memory at once, in batches.
_BATCHES_AT_ONCE = 8


def answer_file(
    load: Callable[[], Pipeline],
    model: str,
    questions: Path,
    out: Path | None,
    settings: AnswerSettings,
    max_errors: int = 0,
    is_overwriting: bool = False,
) -> int:
    """Answer a JSONL file of questions, to another file or to standard output.

    Args:
        load: Loads the pipeline; called only where something is left to do.
        model: Its name, for the answers.
        questions: The file of questions; images and scenes are named relative to its folder.
        out: The file of answers; a killed run is continued. None = standard output.
        settings: How; ``is_json`` adds the scene and what the model reports to every answer.
        max_errors: So many bad lines and failed questions are reported and skipped; one more ends the run.
        is_overwriting: Do not continue ``out`` but start anew.

    Returns:
        How many lines and questions were skipped.

    Raises:
        ValueError: More than ``max_errors`` of them, or one of the files is not what it should be. Answers given
            before are in ``out``.
    """
    rows, problems = read_questions(questions)
    for problem in problems:
        note(f"skipped: {problem}")
    _check_errors(len(problems), max_errors, questions)
    answers = None if out is None else AnswerFile(out, model, is_overwriting)
    open_rows = rows if answers is None else answers.select_open(rows)
    if answers is not None and len(open_rows) < len(rows) and not settings.is_quiet:
        note(f"{len(rows) - len(open_rows)} of {len(rows)} questions are answered in {out} already")
    num_errors, writer = len(problems), answers or AnswerPrinter(model)
    pipeline = load() if open_rows else None
    for start in range(0, len(open_rows), settings.batch_size * _BATCHES_AT_ONCE):
        chunk = open_rows[start : start + settings.batch_size * _BATCHES_AT_ONCE]
        for batch in _in_batches(_answer_rows(pipeline, chunk, questions.parent, settings), settings.batch_size):
            writer.append([(row, _answer_fields(output, settings.is_json)) for row, output in batch])
            for row, output in batch:
                if output.error is not None:
                    num_errors += 1
                    note(f"skipped: {questions}:{row.line}: {output.error}")
            _check_errors(num_errors, max_errors, questions)
    if answers is not None and not settings.is_quiet:
        note(f"{len(open_rows) + len(problems) - num_errors} questions answered, see {out}")
    return num_errors


class AnswerPrinter:
    """Like :class:`AnswerFile`, to standard output.

    Args:
        model: Name of the model.
    """

    def __init__(self, model: str) -> None:
        self.model = model

    def append(self, rows: Iterable[tuple[QuestionRow, Mapping[str, Any]]]) -> None:
        """Print answers."""
        for row, answer in rows:
            print_json({"id": row.id, "image": row.image, "question": row.question, "model": self.model, **answer})


def _answer_rows(
    pipeline: Pipeline, rows: Sequence[QuestionRow], folder: Path, settings: AnswerSettings
) -> Iterator[tuple[QuestionRow, Answer]]:
    """Answers of some rows, in order; a row whose scene cannot be read has an error instead."""
    from ..pipeline.answers import Answer

    scenes: dict[int, Scene | None] = {}
    failures: dict[int, str] = {}
    for row in rows:
        try:
            scene = folder / row.scene if isinstance(row.scene, str) else row.scene
            scenes[row.line] = None if scene is None else read_scene(scene)
        except ValueError as error:
            failures[row.line] = str(error)
    good = [row for row in rows if row.line not in failures]
    outputs: Iterator[Answer] = iter(())
    if good:
        outputs = pipeline.answer_each(
            [folder / row.image for row in good],
            [row.question for row in good],
            [scenes[row.line] for row in good],
            batch_size=settings.batch_size,
            on_error="skip",
            **settings.to_kwargs(),
        )
    for row in rows:
        yield row, Answer((), error=failures[row.line]) if row.line in failures else next(outputs)


def _answer_fields(output: Answer, is_full: bool) -> dict[str, Any]:
    fields = output.to_dict()
    if not is_full:
        del fields["scene"]
    return fields


def _in_batches(items: Iterable[Any], batch_size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _check_errors(num_errors: int, max_errors: int, questions: Path) -> None:
    if num_errors > max_errors:
        raise ValueError(
            f"{num_errors} lines of {questions} failed, --max-errors allows {max_errors}. Mend them or allow more."
        )
