"""JSONL files of questions and of answers: bad lines are named, a killed run continues, nothing is written twice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verbalizers.core.durable_files import append_to_file, atomic_file
from verbalizers.core.valid_text import make_valid

__all__ = ["AnswerFile", "QuestionRow", "read_questions"]


@dataclass(frozen=True)
class QuestionRow:
    """One line of a question file.

    Attributes:
        id: The line's ``id``; its line number where it has none.
        image: Path of the image as written.
        question: The question.
        scene: Findings brought along: the path of a scene file, the scene itself as a mapping, or None.
        line: Line number, from 1.
    """

    id: str | int
    image: str
    question: str
    scene: str | Mapping[str, Any] | None
    line: int


def read_questions(path: str | Path) -> tuple[list[QuestionRow], list[str]]:
    """Read a file of lines ``{"image": path, "question": text, "id": optional, "scene": optional}``.

    Other keys are ignored, blank lines skipped.

    Returns:
        The good rows, and for each bad line ``file:line: what is wrong``.

    Raises:
        ValueError: The file cannot be read.
    """
    rows: list[QuestionRow] = []
    problems: list[str] = []
    lines_of_ids: dict[str | int, int] = {}
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise ValueError(
            f"expected a JSONL file of questions, got {str(path)!r} ({error.strerror}). Check the path."
        ) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _parse_row(line, number)
            if row.id in lines_of_ids:
                raise ValueError(f"the id {row.id!r} stands in line {lines_of_ids[row.id]} already; ids must differ")
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
            problems.append(f"{path}:{number}: {error}")
        else:
            lines_of_ids[row.id] = number
            rows.append(row)
    return rows, problems


def _parse_row(line: bytes, number: int) -> QuestionRow:
    try:
        data = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except RecursionError as error:
        raise ValueError("expected a flat JSON object, got one nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"expected a JSON object, got something else ({error})") from error
    if not isinstance(data, dict):
        raise ValueError(f"expected a JSON object with image and question, got a {type(data).__name__}")
    for name in ("image", "question"):
        if not isinstance(data.get(name), str) or not data[name].strip():
            raise ValueError(f"expected `{name}` to be non-empty text, got {data.get(name)!r}")
    row_id, scene = data.get("id", number), data.get("scene")
    if isinstance(row_id, bool) or not isinstance(row_id, (str, int)):
        raise ValueError(f"expected `id` to be text or an integer, got {row_id!r}")
    if scene is not None and not isinstance(scene, (str, dict)):
        raise ValueError(f"expected `scene` to be a path or an object, got a {type(scene).__name__}")
    # The image's path is a file name and stays as it is written.
    question, scene = make_valid(data["question"]), scene if isinstance(scene, str) else make_valid(scene)
    return QuestionRow(make_valid(row_id), data["image"], question, scene, number)


class AnswerFile:
    """Append-only JSONL file of answers, which a later run continues.

    Every answer is one whole line, on disk before the next batch begins. Opening a file that a killed run left
    drops a torn last line and the rows that hold an ``error`` (they are tried again), by replacing it in one step.

    Args:
        path: The file.
        model: Name of the model; written into every row, and compared with those already there.
        is_overwriting: Start anew instead of continuing.

    Raises:
        ValueError: The file holds something else than answers, or another model's.
    """

    def __init__(self, path: str | Path, model: str, is_overwriting: bool = False) -> None:
        self.path, self.model = Path(path), model
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_dir():
            raise ValueError(f"expected a file for the answers, got the folder {str(path)!r}. Name a file inside it.")
        content = b"" if is_overwriting or not self.path.exists() else self.path.read_bytes()
        self._done = self._read(content)
        kept = "".join(_to_line(row) for row in self._done.values()).encode()
        if is_overwriting or kept != content:
            with atomic_file(self.path) as temporary:
                temporary.write_bytes(kept)

    @property
    def done_ids(self) -> set[str | int]:
        """Ids that have an answer."""
        return set(self._done)

    def _read(self, content: bytes) -> dict[str | int, dict[str, Any]]:
        rows: dict[str | int, dict[str, Any]] = {}
        lines = content.split(b"\n")
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                row_id, model, has_answer = row["id"], row["model"], row.get("answer") is not None
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                if number == len(lines):  # no newline behind it: the run was killed while writing it
                    break
                raise ValueError(
                    f"{self.path}:{number}: expected an answer of an earlier run, got something else. "
                    "Name another --out, or --overwrite this one."
                ) from error
            if model != self.model:
                raise ValueError(
                    f"{self.path}:{number}: expected answers of the model {self.model!r}, got one of {model!r}. "
                    "Name another --out, or --overwrite this one."
                )
            if has_answer:
                rows[row_id] = row
        return rows

    def select_open(self, rows: Iterable[QuestionRow]) -> list[QuestionRow]:
        """The rows that have no answer yet.

        Raises:
            ValueError: An id's answer was given to another question.
        """
        remaining = []
        for row in rows:
            done = self._done.get(row.id)
            if done is None:
                remaining.append(row)
            elif (done.get("image"), done.get("question")) != (row.image, row.question):
                raise ValueError(
                    f"{self.path} holds the answer to another question under the id {row.id!r}: expected "
                    f"{row.question!r} about {row.image!r}, got {done.get('question')!r} about {done.get('image')!r}. "
                    "Name another --out, or --overwrite this one."
                )
        return remaining

    def append(self, rows: Iterable[tuple[QuestionRow, Mapping[str, Any]]]) -> None:
        """Write answers behind the others and wait until they are on disk.

        Args:
            rows: Questions, each with the fields of its answer.
        """
        text = "".join(_to_line(self.build_row(row, answer)) for row, answer in rows)
        append_to_file(self.path, text.encode())

    def build_row(self, row: QuestionRow, answer: Mapping[str, Any]) -> dict[str, Any]:
        """The line of one answer, before it is written."""
        return {"id": row.id, "image": row.image, "question": row.question, "model": self.model, **answer}


def _to_line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
