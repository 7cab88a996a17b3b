"""Scenes whose things have other names: words that are no names of Scenes', so that a model has to take a name as it
is written, from findings and questions, in place of recognising one of 154.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from random import Random

from moai.scenes.questions import SceneQuestion
from moai.scenes.signs import sign_words
from moai.scenes.vocabulary import OBJECT_CLASSES, SYNONYMS, indefinite, is_plural_name, plural
from verbalizers.core.structures import Scene

__all__ = ["rename_scene"]

_RENAMED, _TWO_WORDS, _MADE_UP = 0.6, 0.2, 0.15


@cache
def _forms() -> dict[str, tuple[str, bool]]:
    """How a question may call a thing -> its name, and whether that is a plural."""
    forms: dict[str, tuple[str, bool]] = {}
    for name in OBJECT_CLASSES:
        for called in (name, *SYNONYMS.get(name, ())):
            forms[plural(called)] = name, True
            forms[called] = name, False
    return forms


@cache
def _pattern() -> re.Pattern[str]:
    """Any of these forms, the longest first: "teddy bear" is no bear."""
    forms = "|".join(map(re.escape, sorted(_forms(), key=len, reverse=True)))
    return re.compile(rf"\b(?:(an?) )?({forms})\b", re.IGNORECASE)


def _sample_name(rng: Random, split: str) -> str:
    if rng.random() < _MADE_UP:
        return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3)))
    words = 2 if rng.random() < _TWO_WORDS else 1
    return " ".join(rng.choice(sign_words(split)).lower() for _ in range(words))


def _rename_text(text: str, new_names: Mapping[str, str]) -> tuple[str, set[str]]:
    """The text with other names, and which names stood in it."""
    met: set[str] = set()

    def put(found: re.Match[str]) -> str:
        name, is_many = _forms()[found[2].lower()]
        if name not in new_names:
            return found[0]
        met.add(name)
        new = new_names[name]
        said = plural(new) if is_many else indefinite(new) if found[1] else new
        return said.upper() if found[0].isupper() else said[0].upper() + said[1:] if found[0][0].isupper() else said

    return _pattern().sub(put, text), met


def _rename_question(asked: SceneQuestion, new_names: Mapping[str, str]) -> SceneQuestion | None:
    """The question with other names; None where a slip hides one of them."""
    question, met = _rename_text(asked.question, new_names)
    earlier = []
    for before, answer in asked.earlier:
        (before, in_question), (answer, _) = _rename_text(before, new_names), _rename_text(answer, new_names)
        earlier.append((before, answer))
        met |= in_question
    named = {asked.asked, *(asked.options if asked.kind == "comparison" else ())}
    if named & new_names.keys() - met:
        return None
    answer = asked.answer if asked.kind == "reading" else _rename_text(asked.answer, new_names)[0]
    return replace(asked, question=question, answer=answer, earlier=tuple(earlier))


def rename_scene(
    found: Scene, questions: Sequence[SceneQuestion], rng: Random, split: str = "train"
) -> tuple[Scene, tuple[SceneQuestion, ...]]:
    """Give some of a scene's things, and of those that are asked about and not there, other names.

    Names that a sign claims are kept, as are those that are plural for one thing, grounds and signs.

    Args:
        found: What verbalizers found.
        questions: About the scene.
        rng: Draws names: English words, two of them, or made-up ones, none of which are names of Scenes'.
        split: Whose English words.
    """
    kept = {"sign", *(asked.asked for asked in questions if asked.kind == "forged")}
    names = {*found.segments.class_names, *found.detections.class_names, *(asked.asked for asked in questions)}
    new_names: dict[str, str] = {}
    for name in sorted(names & OBJECT_CLASSES.keys() - kept):
        if not is_plural_name(name) and rng.random() < _RENAMED:
            while (new := _sample_name(rng, split)) in _forms() or new in new_names.values():
                pass
            new_names[name] = new

    def renamed(old: Iterable[str]) -> tuple[str, ...]:
        return tuple(new_names.get(name, name) for name in old)

    scene = replace(
        found,
        segments=replace(found.segments, class_names=renamed(found.segments.class_names)),
        detections=replace(found.detections, class_names=renamed(found.detections.class_names)),
        relations=replace(found.relations, object_names=renamed(found.relations.object_names)),
    )
    asked_about = (_rename_question(asked, new_names) for asked in questions)
    return scene, tuple(asked for asked in asked_about if asked is not None)
