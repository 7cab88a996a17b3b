"""Demonstrations in front of a question: read from a file, drawn at random, or those whose images are nearest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

import torch
from PIL import Image

from ..processing.image_loading import ImageSource, load_image
from ..processing.sample_batching import as_list

__all__ = ["Demonstrations", "Shot", "load_shot", "read_shots"]

#: A demonstration: an image (None = text alone), a question, its answer; and perhaps what verbalizers found in the
#: image, a scene or as text.
Shot: TypeAlias = "tuple[ImageSource | None, str, str] | tuple[ImageSource | None, str, str, Any]"

_IMAGES_AT_ONCE = 16
_HELD_IMAGES = 64
#: Demonstrations without their images where none are wanted: OpenFlamingo's "zero-shot".
_NUM_TEXT_ONLY = 2


def load_shot(index: int, shot: Any) -> Shot:
    """A demonstration with its image loaded.

    Raises:
        ValueError: It is none, or its image cannot be read.
    """
    _check_shot(index, shot)
    image, *others = shot
    return (None if image is None else load_image(image)), *others


def _check_shot(index: int, shot: Any) -> None:
    is_row = isinstance(shot, (tuple, list)) and len(shot) in (3, 4)
    if not is_row or not all(isinstance(text, str) for text in shot[1:3]):
        raise ValueError(f"expected shot {index} as (image or None, question, answer[, scene]), got {shot!r}.")


def read_shots(path: str | Path, is_loading: bool = True) -> list[Shot]:
    """Demonstrations of a JSONL file; images are relative to it, ``scene`` is what verbalizers found in one.

    Args:
        path: The file.
        is_loading: Read the images now; else their paths are handed out.

    Raises:
        ValueError: A line is none, or an image cannot be read; the message names file and line.
    """
    path, shots = Path(path), []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no UTF-8"
        raise ValueError(f"expected a JSONL file of demonstrations, got {path} ({reason}).") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            image = row.get("image")
            shot = (None if image is None else path.parent / image, row["question"], row["answer"])
            shot += (row["scene"],) if row.get("scene") is not None else ()
            _check_shot(len(shots), shot)
            shots.append(load_shot(len(shots), shot) if is_loading else shot)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = f"none under {error}" if isinstance(error, KeyError) else error
            raise ValueError(
                f'{path}, line {number}: expected {{"image": ..., "question": ..., "answer": ...}}, got {reason}.'
            ) from error
    if not shots:
        raise ValueError(f"expected demonstrations in {path}, got none.")
    return shots


class Demonstrations:
    """Where each question gets its demonstrations from; the option ``shots`` takes it in place of a list.

    A question never gets a demonstration about its own image. What it gets depends on it, the pool and the seed alone:
    not on its batch, not on the order of questions.

    Args:
        pool: ``(image, question, answer[, scene])``; images are read when they are needed.
        number: Demonstrations of each question; 0 = two without their images.
        is_retrieved: Those whose images are nearest in the features of the model's vision tower (RICES), the nearest
            last; else drawn at random.
        seed: Of what is drawn.

    Attributes:
        describe: Words of a demonstration, of its loaded image and its scene (None = it brings none); a pipeline says.

    Raises:
        ValueError: The pool holds no such demonstrations, or too few.
    """

    def __init__(self, pool: Sequence[Shot], number: int, is_retrieved: bool = False, seed: int = 0) -> None:
        self.pool, self.number, self.is_retrieved, self.seed = list(pool), number, is_retrieved, seed
        for index, shot in enumerate(self.pool):
            _check_shot(index, shot)
            if shot[0] is None:
                raise ValueError(f"expected an image of every demonstration to choose from, got none of shot {index}.")
        wanted = number or _NUM_TEXT_ONLY
        if number < 0 or wanted > len(self.pool):
            raise ValueError(
                f"expected a number of demonstrations from 0 to {len(self.pool)}, as many as there are, got {number} "
                f"({wanted} to choose)."
            )
        self._image = lru_cache(maxsize=_HELD_IMAGES)(self._load)
        self._features: torch.Tensor | None = None
        self.describe: Callable[[Image.Image, Any], str | None] = lambda image, seen: seen
        self._words: dict[tuple[Any, int], str | None] = {}

    def choose(
        self,
        images: Sequence[Image.Image | Sequence[Image.Image]],
        questions: Sequence[Any],
        embed: Callable[[Sequence[Image.Image]], torch.Tensor],
    ) -> list[list[Shot]]:
        """The demonstrations of some questions.

        Args:
            images: One per question, or several: the nearest to any of them are retrieved.
            questions: As they are asked.
            embed: Images to features ``(len(images), d)`` of length 1.

        Returns:
            Per question its demonstrations, in the order in which they are shown.

        Raises:
            ValueError: An image of the pool cannot be read, all but too few are of the question's images, or it has
                none whose nearest could be retrieved.
        """
        chosen = []
        for shown, question in zip(map(as_list, images), questions, strict=True):
            own = [_digest(image) for image in shown]
            if self.is_retrieved and self.number:
                order = self._rank(shown, embed)
            else:
                order = list(range(len(self.pool)))
                Random(f"{self.seed} {' '.join(digest.hex() for digest in own)} {question}").shuffle(order)
            chosen.append(self._take(order, own))
        return chosen

    def _take(self, order: Sequence[int], own: Collection[bytes]) -> list[Shot]:
        """The first of an order that are not about the question's own images."""
        wanted, taken = self.number or _NUM_TEXT_ONLY, []
        for place in order:
            image, digest = self._image(place)
            if digest not in own:
                texts, said = self.pool[place][1:3], self._describe(place, image) if self.number else None
                taken.append((image if self.number else None, *texts, *([said] if said else [])))
            if len(taken) == wanted:
                return taken[::-1] if self.is_retrieved and self.number else taken
        raise ValueError(
            f"expected {wanted} demonstrations about other images than the question's, got {len(taken)}. Give more, or "
            "ask for fewer."
        )

    def _describe(self, place: int, image: Image.Image) -> str | None:
        """What stands between the image and the question of a demonstration; each image is looked at once."""
        key = self.describe, place
        if key not in self._words:
            try:
                self._words[key] = self.describe(image, next(iter(self.pool[place][3:]), None))
            except ValueError as error:
                raise ValueError(f"shot {place}: {error}") from error
        return self._words[key]

    def _load(self, place: int) -> tuple[Image.Image, bytes]:
        try:
            image = load_image(self.pool[place][0])
        except ValueError as error:
            raise ValueError(f"shot {place}: {error}") from error
        return image, _digest(image)

    def _rank(self, images: Sequence[Image.Image], embed: Callable[..., torch.Tensor]) -> list[int]:
        """Places in the pool, the nearest to a question's images first."""
        if not images:
            raise ValueError(
                "expected an image of the question to retrieve demonstrations by, got none. Draw them at random."
            )
        if self._features is None:
            parts = []
            for start in range(0, len(self.pool), _IMAGES_AT_ONCE):
                places = range(start, min(start + _IMAGES_AT_ONCE, len(self.pool)))
                parts.append(embed([self._image(place)[0] for place in places]))
            self._features = torch.cat(parts)
        # One by one: a batch's sums may differ in the last digit, and with them the order of two that are as near.
        nearness = torch.cat([embed([image]) for image in images]) @ self._features.T
        return nearness.amax(dim=0).argsort(descending=True, stable=True).tolist()


def _digest(image: Image.Image) -> bytes:
    """Equal for equal images."""
    return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).digest()
