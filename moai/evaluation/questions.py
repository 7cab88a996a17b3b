"""Test questions: what is asked, about which image, and what is right; of scenes or of files alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from verbalizers import Scene

__all__ = ["TestImage", "TestQuestion"]


@dataclass(frozen=True, eq=False)
class TestImage:
    """An image that questions are about.

    Attributes:
        key: Equal for equal images of one test.
        load: Reads or paints it.
        read_scene: What is known about it before anybody looks: a scene's truth with noise, or a cache's; None = the
            verbalizers look.
    """

    __test__ = False  # not a class of tests

    key: str
    load: Callable[[], Image.Image]
    read_scene: Callable[[], Scene] | None = None


@dataclass(frozen=True, eq=False)
class TestQuestion:
    """One question of a test.

    Attributes:
        id: Unique in its test.
        kind: What the results are told apart by.
        question: As it is asked.
        answers: What is right: one text or several.
        image: What it is about.
        earlier: Questions and answers of the turns before.
        choices: Answers to choose from; empty = none are given.
        wording: Which words it is asked in ("trained", "never trained"; "original", "paraphrase"); "" = one kind only.
        said_as: The id of the question that this one is a paraphrase of; "" = it is none.
        options: What somebody might guess who knows the scene and does not read the question.
        max_new_tokens: Longest answer in tokens.
        identity: What the image and its scene are, in few JSON-able words: results of other content are others.
    """

    __test__ = False

    id: str
    kind: str
    question: str
    answers: tuple[str, ...]
    image: TestImage
    earlier: tuple[tuple[str, str], ...] = ()
    choices: tuple[str, ...] = ()
    wording: str = ""
    said_as: str = ""
    options: tuple[str, ...] = ()
    max_new_tokens: int = 64
    identity: Any = field(default=None)
