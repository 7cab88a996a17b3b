"""Folder of an evaluation's results: rows that survive a kill, and what they are about.

- ``settings.json``: model by its files' content, test, settings: what decides the answers.
- ``samples.jsonl``: one line per question, in order; ``samples.CONDITION.jsonl`` of other conditions.
- ``images/``: an overlay of each image that the report shows.
- ``results.json``, ``report.html``: written at the end, from the above.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moai.data.question_files import describe_changes, flatten_settings
from verbalizers.core.durable_files import append_to_file, read_lines, write_json
from verbalizers.core.valid_text import make_valid

from .conditions import MODEL

__all__ = ["ResultFolder", "read_rows"]

SETTINGS_FILE, RESULTS_FILE, REPORT_FILE, IMAGES_FOLDER = "settings.json", "results.json", "report.html", "images"


class ResultFolder:
    """Results of one evaluation.

    Args:
        folder: Held by the caller (:func:`hold_folder`).
        conditions: Names, each of which has a file of rows.

    Attributes:
        folder: As given.
    """

    def __init__(self, folder: Path, conditions: Sequence[str]) -> None:
        self.folder, self.conditions = Path(folder), tuple(conditions)

    def rows_path(self, condition: str) -> Path:
        """The file of a condition's rows."""
        return self.folder / ("samples.jsonl" if condition == MODEL else f"samples.{condition}.jsonl")

    def check(self, deciding: Mapping[str, Any], is_overwriting: bool) -> None:
        """Compare the folder's settings with those of now, or begin it.

        Args:
            deciding: What decides the answers, JSON-able, one level of mappings at most.
            is_overwriting: Begin anew.

        Raises:
            ValueError: The folder holds answers of other settings; each difference is named. Or something else.
        """
        path, wanted = self.folder / SETTINGS_FILE, json.loads(json.dumps(flatten_settings(deciding)))
        advice = "Give the former ones, name another --out, or start anew with --overwrite."
        if path.is_file() and not is_overwriting:
            try:
                recorded = dict(json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, TypeError) as error:
                raise ValueError(f"expected settings of an evaluation in {path}, got {error}. {advice}") from error
            if told := describe_changes(recorded, wanted):
                raise ValueError(f"the answers in {self.folder} have other settings: {told}. {advice}")
            return
        rows = sorted(self.folder.glob("samples*.jsonl"))
        if rows and not is_overwriting:
            raise ValueError(f"{rows[0]} holds answers, and {SETTINGS_FILE} beside it is gone. {advice}")
        for file in [*rows, *(self.folder / IMAGES_FOLDER).glob("*.jpg")]:
            file.unlink()
        write_json(path, wanted)

    def check_reader(self, condition: str, reader: Mapping[str, Any]) -> None:
        """Compare who answered under a condition with who does now, or record it.

        Args:
            condition: Its name.
            reader: JSON-able contents; empty = the model's own.

        Raises:
            ValueError: It was somebody else.
        """
        path, rows = self.folder / f"settings.{condition}.json", self.rows_path(condition)
        if path.is_file() and rows.is_file():
            if told := describe_changes(dict(json.loads(path.read_text(encoding="utf-8"))), dict(reader)):
                raise ValueError(
                    f"the answers in {rows} are another reader's: {told}. Name the former one, name another --out, or "
                    "remove that file."
                )
        write_json(path, dict(reader))

    def resume(self, batch_size: int, num_questions: int) -> dict[str, int]:
        """Cut the files of rows to whole batches.

        Args:
            batch_size: Questions per batch.
            num_questions: Of the test.

        Returns:
            By condition the first batch that is open.
        """
        starts = {}
        for name in self.conditions:
            path, ends = self.rows_path(name), [end for end, _ in read_lines(self.rows_path(name))]
            starts[name] = -(-num_questions // batch_size) if len(ends) >= num_questions else len(ends) // batch_size
            kept = min(starts[name] * batch_size, num_questions)
            size = ends[kept - 1] if kept else 0
            if path.is_file() and path.stat().st_size != size:
                with path.open("r+b") as file:
                    file.truncate(size)
        return starts

    def append(self, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Write a batch's rows behind the others and wait until they are on disk.

        Args:
            rows: By condition.
        """
        for name, part in rows.items():
            append_to_file(self.rows_path(name), b"".join(map(_to_line, part)))

    def read(self, condition: str) -> list[dict[str, Any]]:
        """A condition's rows."""
        return [row for _, row in read_lines(self.rows_path(condition))]

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write ``results.json``."""
        write_json(self.folder / RESULTS_FILE, results)


def _to_line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(make_valid(row), ensure_ascii=False).encode() + b"\n"


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a result: its folder, or one of its files of rows.

    Raises:
        ValueError: There is none, or it holds something else.
    """
    path = Path(path)
    file = path / "samples.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"expected the folder of an evaluation or its samples.jsonl, got {str(path)!r}.")
    rows = [row for _, row in read_lines(file)]
    if not rows or any(
        not isinstance(row, dict) or not {"id", "question", "score", "right"} <= set(row) for row in rows
    ):
        raise ValueError(f"expected rows of an evaluation in {file}, with id, question, score and right.")
    return rows
