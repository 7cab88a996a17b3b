"""JSONL files of questions and of answers: bad lines are named, a killed run continues, nothing is written twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verbalizers.core.durable_files import append_to_file, atomic_file, hold_name, write_json
from verbalizers.core.valid_text import STRICT_JSON, make_valid

__all__ = ["AnswerFile", "QuestionRow", "describe_changes", "flatten_settings", "read_questions"]

_NOTHING = object()  # a setting that one of two records lacks


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
        if Path(path).is_char_device() and str(path) != "/dev/stdin":
            raise ValueError(f"expected a JSONL file of questions, got the device {str(path)!r}. Name a file.")
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
        data = STRICT_JSON.decode(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except RecursionError as error:
        raise ValueError("expected a flat JSON object, got one nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"expected a JSON object, got something else ({error})") from error
    if not isinstance(data, dict):
        raise ValueError(f"expected a JSON object with image and question, got a {type(data).__name__}")
    for name in ("image", "question"):
        if not isinstance(data.get(name), str) or not data[name].strip():
            others = ", ".join(repr(key) for key in data) or "no keys"
            got = repr(data[name]) if name in data else f"none among {others}"
            raise ValueError(f"expected `{name}` to be non-empty text, got {got}")
    row_id, scene = data.get("id", number), data.get("scene")
    if isinstance(row_id, bool) or not isinstance(row_id, (str, int)):
        raise ValueError(f"expected `id` to be text or an integer, got {row_id!r}")
    if scene is not None and not isinstance(scene, (str, dict)):
        raise ValueError(f"expected `scene` to be a path or an object, got a {type(scene).__name__}")
    # The image's path is a file name and stays as it is written.
    question, scene = make_valid(data["question"]), scene if isinstance(scene, str) else make_valid(scene)
    return QuestionRow(make_valid(row_id), data["image"], question, scene, number)


class AnswerFile:
    """Append-only JSONL file of answers, which a later run continues under the same settings.

    Every answer is one whole line, on disk before the next batch begins. Opening a file that a killed run left
    drops a torn last line and the rows that hold an ``error`` (they are tried again), by replacing it in one step.
    ``FILE.settings.json`` beside it records the settings of its answers. To be used as a context: within, no other
    process writes to the file.

    Args:
        path: The file.
        model: Name of the model; written into every row, and compared with those already there.
        settings: What decides the answers, JSON-able, one level of mappings at most; see the class's text.
        is_overwriting: Start anew instead of continuing.

    Raises:
        ValueError: The file holds something else than answers, another model's or answers of other settings; it is no
            regular file, cannot be written, or another process writes to it. Raised on entering.
    """

    def __init__(self, path: str | Path, model: str, settings: Mapping[str, Any], is_overwriting: bool = False) -> None:
        self.path, self.model, self.settings = Path(path).resolve(), model, flatten_settings(settings)
        self.settings_path = self.path.with_name(self.path.name + ".settings.json")
        self._given, self._is_overwriting = Path(path), is_overwriting
        self._done: dict[str | int, dict[str, Any]] = {}
        self._context = ExitStack()

    def __enter__(self) -> AnswerFile:
        try:
            _check_output(self._given)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._context.enter_context(hold_name(self.path))
            self._open()
        except OSError as error:
            self._context.close()
            raise ValueError(
                f"expected a file that answers can be written to, got {str(self.path)!r} ({error.strerror}). "
                "Name another --out."
            ) from error
        except BaseException:
            self._context.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._context.close()

    def _open(self) -> None:
        content = b"" if self._is_overwriting or not self.path.exists() else self.path.read_bytes()
        self._done = self._read(content)
        if self._done:
            self._compare_settings()
        kept = b"".join(map(_to_line, self._done.values()))
        if self._is_overwriting or kept != content:
            with atomic_file(self.path) as temporary:
                temporary.write_bytes(kept)
        if not self._done:  # in this order: a record never stands beside answers that it is not about
            write_json(self.settings_path, self.settings)

    def _compare_settings(self) -> None:
        advice = "Give the former ones, name another --out, or start anew with --overwrite."
        try:
            recorded = dict(json.loads(self.settings_path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(
                f"{self.path} holds {len(self._done)} answers, and {self.settings_path.name} beside it, which records "
                f"their settings, cannot be read ({error}). Put it back, name another --out, or start anew with "
                "--overwrite."
            ) from error
        if found := describe_changes(recorded, json.loads(json.dumps(self.settings))):
            raise ValueError(f"the {len(self._done)} answers in {self.path} have other settings: {found}. {advice}")

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

    def select_open(
        self, rows: Iterable[QuestionRow], hash_inputs: Callable[[QuestionRow], Mapping[str, str]] | None = None
    ) -> list[QuestionRow]:
        """The rows that have no answer yet.

        Args:
            rows: All questions.
            hash_inputs: Hashes of a row's files as they are now, by the name that they have in its answer; what is
                not there any more is left out.

        Raises:
            ValueError: An id's answer was given to another question, image or scene, or to one that is not asked.
        """
        remaining, unasked = [], dict(self._done)
        for row in rows:
            done = unasked.pop(row.id, None)
            if done is None:
                remaining.append(row)
                continue
            if (done.get("image"), done.get("question")) != (make_valid(row.image), row.question):
                raise ValueError(
                    f"{self.path} holds the answer to another question under the id {row.id!r}: expected "
                    f"{row.question!r} about {row.image!r}, got {done.get('question')!r} about {done.get('image')!r}. "
                    "Name another --out, or --overwrite this one."
                )
            now = {} if hash_inputs is None else hash_inputs(row)
            changed = [name for name in now if now[name] != done.get(name, "")]
            if changed:
                name = changed[0]
                former, new = str(done.get(name, "nothing"))[:16], now[name][:16] or "nothing"
                raise ValueError(
                    f"{self.path} holds the answer to {row.id!r} about other content ({row.image!r}): {name} was "
                    f"{former}, now {new}. Put the former file back, name another --out, or --overwrite this one."
                )
        if unasked:
            raise ValueError(
                f"{self.path} holds answers to {len(unasked)} questions that are not asked now, the first "
                f"{next(iter(unasked))!r}. Name another --out, or --overwrite this one."
            )
        return remaining

    def append(self, rows: Iterable[tuple[QuestionRow, Mapping[str, Any]]]) -> None:
        """Write answers behind the others and wait until they are on disk.

        Args:
            rows: Questions, each with the fields of its answer.

        Raises:
            ValueError: They cannot be written, the disk is full for example; the earlier ones are kept.
        """
        try:
            append_to_file(self.path, b"".join(_to_line(self.build_row(row, answer)) for row, answer in rows))
        except OSError as error:
            raise ValueError(
                f"the answers cannot be written to {str(self.path)!r}: {error.strerror}. Those before are kept: make "
                "room and give the same command again."
            ) from error

    def build_row(self, row: QuestionRow, answer: Mapping[str, Any]) -> dict[str, Any]:
        """The line of one answer, before it is written."""
        return {"id": row.id, "image": row.image, "question": row.question, "model": self.model, **answer}


def _to_line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(make_valid(row), ensure_ascii=False).encode() + b"\n"


def flatten_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without nesting, so that a difference is one value: ``{"words": {"a": 1}}`` -> ``{"words.a": 1}``."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, Mapping) else {name: value}
    return flat


def describe_changes(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What differs between two records of settings, in words; "" = nothing.

    Args:
        recorded: From :func:`flatten_settings`, as it was written.
        wanted: Likewise, as it is now.
    """
    names = [name for name in {**wanted, **recorded} if wanted.get(name, _NOTHING) != recorded.get(name, _NOTHING)]
    return "; ".join(
        f"{name} was {_show(recorded.get(name, _NOTHING))}, now {_show(wanted.get(name, _NOTHING))}" for name in names
    )


def _show(value: Any) -> str:
    return "nothing" if value is _NOTHING else json.dumps(value, ensure_ascii=False)


def _check_output(path: Path) -> None:
    """Refuse a folder, and what is no file to come back to: a device, a pipe."""
    if path.is_dir():
        raise ValueError(f"expected a file for the answers, got the folder {str(path)!r}. Name a file inside it.")
    if path.exists() and not path.is_file():
        raise ValueError(
            f"expected a regular file for the answers, got {str(path)!r}, which is a device or a pipe. Without --out "
            "they go to standard output."
        )
