"""``moai ask --questions FILE --out FILE``: bad lines are skipped, a killed run is continued."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verbalizers import Scene
from verbalizers.store.rows import hash_content

from ..data.question_files import AnswerFile, QuestionRow, read_questions
from ..data.scene_files import read_scene
from ..processing.image_loading import ImageLoadError, check_image_path, read_image_file
from .answer_settings import AnswerSettings
from .rendering import note, print_json, progress_bar

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
    deciding: Callable[[], Mapping[str, Any]],
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
        deciding: What decides the answers, for :class:`AnswerFile`; called only where there is ``out``.
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
    if out is not None:
        _check_inputs(out, rows, questions)
    file = AnswerPrinter(model) if out is None else AnswerFile(out, model, deciding(), is_overwriting)
    with nullcontext(file) if out is None else file as writer:
        open_rows = rows if out is None else writer.select_open(rows, _InputHashes(questions.parent))
        if len(open_rows) < len(rows) and not settings.is_quiet:
            note(f"{len(rows) - len(open_rows)} of {len(rows)} questions are answered in {out} already")
        _check_images(open_rows, len(problems), max_errors, questions)
        num_errors, num_unsure = len(problems), 0
        with progress_bar("answering", len(rows)) as show:
            show(len(rows) - len(open_rows), "loading the model" if open_rows else "")
            pipeline = load() if open_rows else None
            for start in range(0, len(open_rows), settings.batch_size * _BATCHES_AT_ONCE):
                chunk = open_rows[start : start + settings.batch_size * _BATCHES_AT_ONCE]
                answers = _answer_rows(pipeline, chunk, questions.parent, settings)
                for number, batch in enumerate(_in_batches(answers, settings.batch_size)):
                    writer.append(
                        [(row, hashes | _answer_fields(output, settings.is_json)) for row, output, hashes in batch]
                    )
                    num_unsure += sum(output.is_unsure for _, output, _ in batch)
                    for row, output, _ in batch:
                        if output.error is not None:
                            num_errors += 1
                            note(f"skipped: {questions}:{row.line}: {output.error}")
                    num_done = start + number * settings.batch_size + len(batch)
                    show(len(rows) - len(open_rows) + num_done)
                    _check_errors(num_errors, max_errors, questions)
    if num_unsure and not settings.is_quiet:
        note(f"{num_unsure} of {len(open_rows)} answers may be guesses: is_unsure")
    if out is not None and not settings.is_quiet:
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


class HashedImage:
    """An image file that is read from its start whenever that is asked for, and tells the hash of what it gave.

    Args:
        path: The file.

    Attributes:
        name: Its path.
        content_hash: Of the content that was read last; None = it was not read.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.content_hash: str | None = None
        self._rest = io.BytesIO()

    def seekable(self) -> bool:
        """True: every reading opens the file again."""
        return True

    def seek(self, position: int) -> int:
        """Read the file.

        Raises:
            ImageLoadError: It is not there, or no file to be read.
        """
        data = read_image_file(self.name)
        self.content_hash, self._rest = hash_content(data), io.BytesIO(data)
        return self._rest.seek(position)

    def read(self, size: int = -1) -> bytes:
        """The next bytes of what `seek` read; what was given is forgotten at the end."""
        piece = self._rest.read(size)
        if not piece:
            self._rest = io.BytesIO()
        return piece


class _InputHashes:
    """Hashes of a row's image and scene as they are now: what `AnswerFile` compares with those of the answer."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._hash_image = lru_cache(maxsize=None)(lambda path: hash_content(read_image_file(path)))

    def __call__(self, row: QuestionRow) -> dict[str, str]:
        try:
            image = {"image_hash": self._hash_image(self._folder / row.image)}
        except ImageLoadError:  # gone: its answer is still the answer
            image = {}
        return {**image, "scene_hash": _hash_scene(row, self._folder)}


def _hash_scene(row: QuestionRow, folder: Path) -> str:
    """Hash of the findings that a row brings along; "" = none, or their file is not there."""
    if row.scene is None:
        return ""
    if not isinstance(row.scene, str):
        return hash_content(json.dumps(row.scene, sort_keys=True).encode())
    path = folder / row.scene
    try:
        return hash_content(path.read_bytes()) if path.is_file() else ""
    except OSError:
        return ""


def _answer_rows(
    pipeline: Pipeline, rows: Sequence[QuestionRow], folder: Path, settings: AnswerSettings
) -> Iterator[tuple[QuestionRow, Answer, dict[str, str]]]:
    """Answers of some rows, in order, and hashes of what they are about; an unreadable scene becomes an error."""
    from ..pipeline.answers import Answer

    scenes: dict[int, Scene | None] = {}
    failures: dict[int, str] = {}
    images: dict[str, HashedImage] = {}
    scene_hashes: dict[int, str] = {}
    for row in rows:
        images.setdefault(row.image, HashedImage(folder / row.image))
        scene_hashes[row.line] = _hash_scene(row, folder)
        try:
            scene = folder / row.scene if isinstance(row.scene, str) else row.scene
            scenes[row.line] = None if scene is None else read_scene(scene)
        except ValueError as error:
            failures[row.line] = str(error)
    good = [row for row in rows if row.line not in failures]
    outputs: Iterator[Answer] = iter(())
    if good:
        outputs = pipeline.answer_each(
            [images[row.image] for row in good],
            [row.question for row in good],
            [scenes[row.line] for row in good],
            batch_size=settings.batch_size,
            on_error="skip",
            **settings.to_kwargs(),
        )
    for row in rows:
        output = Answer((), error=failures[row.line]) if row.line in failures else next(outputs)
        hashes = {"image_hash": images[row.image].content_hash, "scene_hash": scene_hashes[row.line]}
        yield row, output, {name: value for name, value in hashes.items() if value}


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


def _check_inputs(out: Path, rows: Iterable[QuestionRow], questions: Path) -> None:
    """Refuse to write the answers over a file that they are made from."""
    if not out.exists():
        return
    folder = questions.parent
    scenes = {folder / row.scene for row in rows if isinstance(row.scene, str)}
    for path in [questions, *{folder / row.image for row in rows}, *scenes]:
        if os.path.exists(path) and os.path.samefile(path, out):
            raise ValueError(
                f"expected another file for the answers than their input {str(path)!r}. Name another --out."
            )


def _check_images(rows: Iterable[QuestionRow], num_bad: int, max_errors: int, questions: Path) -> None:
    """Tell of images that are not there before a model is loaded, where they are more than may be skipped."""
    missing = []
    for row in rows:
        try:
            check_image_path(questions.parent / row.image)
        except ImageLoadError as error:
            missing.append(f"{questions}:{row.line}: {error}")
    if num_bad + len(missing) > max_errors:
        for problem in missing[: max_errors + 1]:
            note(f"skipped: {problem}")
        _check_errors(num_bad + len(missing), max_errors, questions)


def _check_errors(num_errors: int, max_errors: int, questions: Path) -> None:
    if num_errors > max_errors:
        raise ValueError(
            f"{num_errors} lines of {questions} failed, --max-errors allows {max_errors}. Mend them or allow more."
        )
