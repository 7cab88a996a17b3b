"""Report of a training data set: counts, and the rows that cannot be used."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

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
        num_rows: Rows read.
        num_samples: Training samples made of them.
        num_pictures: Images that the samples' rows show.
        problems: Malformed rows, unreadable images, too long samples: skipped.
        missing: Images without an entry in the cache of verbalizations.
        missing_action: What happens with those.
    """

    max_bad_rows: int = 0
    num_rows: int = 0
    num_samples: int = 0
    num_pictures: int = 0
    problems: list[Problem] = field(default_factory=list)
    missing: list[Problem] = field(default_factory=list)
    missing_action: str = "error"

    def add(self, place: str, reason: str) -> None:
        """Record a bad row.

        Raises:
            ValueError: There are more than `max_bad_rows` now.
        """
        problem = Problem(place, reason)
        if problem in self.problems:
            return
        self.problems.append(problem)
        logger.warning("skipped %s", problem)
        if len(self.problems) > self.max_bad_rows:
            raise ValueError(
                f"expected at most {self.max_bad_rows} bad rows (`max_bad_rows`), got {len(self.problems)}:\n"
                f"{_list(self.problems)}\nCorrect the data, or allow more bad rows."
            )

    def close_missing(self, cache: str | None) -> None:
        """Raise or report where the cache lacks images.

        Raises:
            ValueError: It lacks something and `missing_action` is "error".
        """
        if not self.missing:
            return
        text = f"{len(self.missing)} images are not in the cache {cache!r}:\n{_list(self.missing)}"
        if self.missing_action == "error":
            raise ValueError(
                f"{text}\nRun `moai verbalize DATASET --out {cache}` once more, or set `on_missing` to skip, live or "
                "empty."
            )
        logger.warning("%s\n`on_missing` is %s.", text, self.missing_action)

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-able."""
        counts = {name: getattr(self, name) for name in ("num_rows", "num_samples", "num_pictures")}
        return counts | {"problems": [vars(p) for p in self.problems], "missing": [vars(p) for p in self.missing]}

    def summary(self) -> str:
        """One line of text."""
        text = f"{self.num_samples} samples from {self.num_rows} rows with {self.num_pictures} images"
        if self.problems:
            text += f", {len(self.problems)} skipped"
        if self.missing:
            text += f", {len(self.missing)} images without verbalization ({self.missing_action})"
        return text


def _list(problems: list[Problem]) -> str:
    lines = [f"  {problem}" for problem in problems[:_SHOWN]]
    return "\n".join([*lines, f"  ... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else lines)
