"""Demonstrations in front of a question: an image, a question, its answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

from ..processing.image_loading import ImageSource, load_image

__all__ = ["Shot", "parse_shots"]

#: A demonstration: an image (None = text alone), a question, its answer.
Shot: TypeAlias = "tuple[ImageSource | None, str, str]"


def parse_shots(given: Any) -> list[Shot]:
    """Demonstrations with their images loaded.

    Args:
        given: ``[(image, question, answer), ...]``, or a JSONL file of them, see :func:`_read_shots`.

    Raises:
        ValueError: One is none, or an image cannot be read.
    """
    if isinstance(given, (str, Path)):
        return _read_shots(given)
    return [_load_shot(index, shot) for index, shot in enumerate(given)]


def _load_shot(index: int, shot: Any) -> Shot:
    """A demonstration with its image loaded.

    Raises:
        ValueError: It is none, or its image cannot be read.
    """
    if not isinstance(shot, (tuple, list)) or len(shot) != 3 or not all(isinstance(text, str) for text in shot[1:]):
        raise ValueError(f"expected shot {index} as (image or None, question, answer), got {shot!r}.")
    image, question, answer = shot
    return (None if image is None else load_image(image)), question, answer


def _read_shots(path: str | Path) -> list[Shot]:
    """Demonstrations of a JSONL file; images are relative to it.

    Raises:
        ValueError: A line is none, or an image cannot be read; the message names file and line.
    """
    path, shots = Path(path), []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ValueError(f"expected a JSONL file of demonstrations, got {path} ({error.strerror}).") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            image = row.get("image")
            shots.append((None if image is None else load_image(path.parent / image), row["question"], row["answer"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f'{path}, line {number}: expected {{"image": ..., "question": ..., "answer": ...}}, got {error}.'
            ) from error
    if not shots:
        raise ValueError(f"expected demonstrations in {path}, got none.")
    return shots
