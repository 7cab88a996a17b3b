"""Report of a training data set: counts, and the rows that cannot be used."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verbalizers.core.durable_files import append_to_file, atomic_file

__all__ = ["DataReport", "Problem"]

logger = logging.getLogger(__name__)
_SHOWN = 10


@dataclass(frozen=True)
class Problem:
    """A row that cannot be used as it is.

    Attributes:
        place: File and line, or table and row.
        reason: What was expected and what came.
    """

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass
class DataReport:
    """Counts and problems of one data set.

    Attributes:
        max_bad_rows: Most problems before it is an error.
        file: Where all problems are listed, one JSON object a line; None = nowhere.
        num_rows: Rows read.
        num_samples: Training samples made of them.
        num_images: Images that the samples' rows show.
        problems: Malformed rows, unreadable images, too long samples: skipped.
        missing: Images without an entry in the cache of verbalizations.
        missing_action: What happens with those.
    """

    max_bad_rows: int = 0
    file: Path | None = None
    num_rows: int = 0
    num_samples: int = 0
    num_images: int = 0
    problems: list[Problem] = field(default_factory=list)
    missing: list[Problem] = field(default_factory=list)
    missing_action: str = "error"

    def add(self, place: str, reason: str) -> None:
        """Record a bad row. Whether there are too many is told by `close`, when all of them are known."""
        self.problems.append(Problem(place, reason))

    def add_late(self, place: str, reason: str, num_bad: int) -> None:
        """Record a row that turned out bad when its sample was needed.

        Args:
            place: Where it stands.
            reason: What is wrong with it.
            num_bad: How many there are by now, in all processes that read this data set.

        Raises:
            ValueError: That is more than `max_bad_rows`.
        """
        problem = Problem(place, reason)
        is_new = problem not in self.problems
        if is_new:
            self.problems.append(problem)
            if self.file is not None:
                append_to_file(self.file, _to_line(problem))
        if num_bad > self.max_bad_rows:
            raise ValueError(
                f"expected at most {self.max_bad_rows} bad rows (`max_bad_rows`), got {num_bad}, the last one while "
                f"reading samples: {problem} Correct the data, or allow more; `check_images: decode` finds damaged "
                "images before the first step."
            )
        if is_new:
            logger.warning("skipped %s", problem)

    def close(self, cache: str | None) -> None:
        """Write all problems to `file`, and tell the first ones.

        Args:
            cache: The cache of verbalizations, for messages.

        Raises:
            ValueError: There are more than `max_bad_rows`, or images without verbalization and `missing_action` is
                "error".
        """
        absent = [Problem(problem.place, f"{problem.reason} is not in the cache {cache!r}") for problem in self.missing]
        listed = ""
        if self.file is not None and (self.problems or absent):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(self.file) as temporary:
                temporary.write_bytes(b"".join(map(_to_line, [*self.problems, *absent])))
            listed = f"\nAll of them are listed in {self.file}."
        elif self.file is not None:
            self.file.unlink(missing_ok=True)
        errors = []
        if len(self.problems) > self.max_bad_rows:
            errors.append(
                f"expected at most {self.max_bad_rows} bad rows (`max_bad_rows`), got {len(self.problems)}:\n"
                f"{_list(self.problems)}\nCorrect the data, or allow more bad rows."
            )
        elif self.problems:
            logger.warning("skipped %d bad rows:\n%s%s", len(self.problems), _list(self.problems), listed)
        text = f"{len(self.missing)} images are not in the cache {cache!r}:\n{_list(self.missing)}"
        if self.missing and self.missing_action == "error":
            errors.append(
                f"{text}\nRun `moai verbalize DATASET --out {cache}` once more, or set `on_missing` to skip, live or "
                "empty."
            )
        elif self.missing:
            logger.warning("%s\n`on_missing` is %s.", text, self.missing_action)
        if errors:
            raise ValueError("\n".join(errors) + listed)

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-able."""
        counts = {name: getattr(self, name) for name in ("num_rows", "num_samples", "num_images")}
        return counts | {"problems": [vars(p) for p in self.problems], "missing": [vars(p) for p in self.missing]}

    def summary(self) -> str:
        """One line of text."""
        text = f"{self.num_samples} samples from {self.num_rows} rows with {self.num_images} images"
        if self.problems:
            text += f", {len(self.problems)} skipped"
        if self.missing:
            text += f", {len(self.missing)} images without verbalization ({self.missing_action})"
        return text


def _to_line(problem: Problem) -> bytes:
    return json.dumps(vars(problem), ensure_ascii=False).encode() + b"\n"


def _list(problems: list[Problem]) -> str:
    lines = [f"  {problem}" for problem in problems[:_SHOWN]]
    return "\n".join([*lines, f"  ... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else lines)
