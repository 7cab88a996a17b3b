"""Scenes whose things have other names: words that are no names of Scenes', so that a model has to take a name as it
is written, from findings and questions, in place of recognising one of 154. In training some scenes have nouns whose
sorts are known, and are asked for sorts ("Is there a tool?", "What bird is this?"), and things are related in more ways
than Scenes know.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random

from moai.scenes.questions import (
    CLEAR_SORTS,
    MAX_COUNT,
    UNCOUNTED_SORTS,
    SceneQuestion,
    clear_sorts,
    plural_suffix,
    sorts_of,
)
from moai.scenes.signs import sign_words
from moai.scenes.vocabulary import (
    OBJECT_CLASSES,
    PAINTS,
    PREDICATES,
    SYNONYMS,
    indefinite,
    is_plural_name,
    plural,
)
from moai.scenes.wordings import name_slots, word_question
from verbalizers.core.structures import Scene

__all__ = ["rename_scene", "sorted_nouns"]

_SORTED_NOUNS = Path(__file__).parent / "assets" / "words" / "sorts.json"

_RENAMED, _TWO_WORDS, _MADE_UP = 0.6, 0.2, 0.15
# Shares of the scenes of training: nouns of known sorts, other relations; and of the relations of such a scene.
_SORTED, _OTHERWISE_RELATED, _OTHER_PREDICATE = 0.7, 0.4, 0.7
# Whether there is a garment nobody can say where a nurse is, nor whether an apple is a plant, or a tuna food.
_DOUBTED_BESIDE = {"garment": "person", "plant": "food", "food": "fish"}
_OTHER_PREDICATES = (
    *("above", "across", "against", "around", "at", "behind", "below", "biting", "carrying", "catching", "chasing"),
    *("cleaning", "climbing", "covering", "crossing", "drinking from", "eating", "entering", "facing", "feeding"),
    *("following", "growing in", "growing on", "guarding", "inside", "jumping over", "kicking", "leaning against"),
    *("leaning on", "lying in", "lying on", "looking at", "looking into", "looking out of", "mounted on", "near"),
    *("next to", "outside", "painted on", "part of", "passing", "playing", "playing with", "pointing at", "pulling"),
    *("pushing", "resting on", "sleeping in", "sleeping on", "swimming in", "throwing", "tied to", "touching"),
    *("under", "underneath", "waiting for", "watching"),
)


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


@cache
def sorted_nouns() -> dict[str, tuple[str, ...]]:
    """By sort, and of "other", which are of none: nouns that are no names of Scenes'."""
    table: dict[str, list[str]] = json.loads(_SORTED_NOUNS.read_text("utf-8"))
    return {sort: tuple(nouns) for sort, nouns in table.items()}


@cache
def _sorts_by_noun() -> dict[str, frozenset[str]]:
    sorts: dict[str, set[str]] = {}
    for sort, nouns in sorted_nouns().items():
        for noun in nouns:
            sorts.setdefault(noun, set()).add(sort)
    return {noun: frozenset(its & CLEAR_SORTS.keys()) for noun, its in sorts.items()}


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


@cache
def _predicate_pattern() -> re.Pattern[str]:
    said = "|".join(map(re.escape, sorted(PREDICATES, key=len, reverse=True)))
    return re.compile(rf"\b(?:{said})\b", re.IGNORECASE)


def _relate_otherwise(asked: SceneQuestion, predicates: Mapping[str, str], told: Iterable[str]) -> SceneQuestion | None:
    """The question about things that are related in other ways; None where it is not clear which words say how."""

    def put(found: re.Match[str]) -> str:
        new = predicates.get(found[0].lower(), found[0])
        return new.upper() if found[0].isupper() else new

    if any(_predicate_pattern().search(before) for before, _ in asked.earlier):
        return None
    if asked.form in ("relation_object", "relation_subject"):
        met = _predicate_pattern().findall(asked.question)
        if len(met) != 1 or asked.kind != "absence" and met[0].lower() not in told:
            return None
        return replace(asked, question=_predicate_pattern().sub(put, asked.question))
    if asked.kind == "description":
        said = rf"(?:(?<= is )|(?<= are ))(?:{_predicate_pattern().pattern})(?= the )"
        return replace(asked, answer=re.sub(said, put, asked.answer))
    return asked


def _names_in(text: str) -> set[str]:
    return {_forms()[found[2].lower()][0] for found in _pattern().finditer(text)}


def _rename_question(asked: SceneQuestion, new_names: Mapping[str, str]) -> SceneQuestion | None:
    """The question with other names; None where a slip hides one of them, or a sort is asked for: names tell it."""
    if asked.is_sort:
        return None if new_names else asked
    if asked.form == "colour_either":  # an orange may be renamed, the colour may not
        if asked.asked in PAINTS:
            return None
        new_names = {name: new for name, new in new_names.items() if name not in PAINTS}
    paints = new_names.keys() & PAINTS.keys()
    if any(answer in PAINTS and paints & _names_in(before) for before, answer in asked.earlier):
        return None
    question, met = _rename_text(asked.question, new_names)
    earlier = []
    for before, answer in asked.earlier:
        before, in_question = _rename_text(before, new_names)
        earlier.append((before, answer if answer in PAINTS else _rename_text(answer, new_names)[0]))
        met |= in_question
    named = {asked.asked, *(asked.options if asked.kind == "comparison" else ())}
    if named & new_names.keys() - met:
        return None
    answer = asked.answer if asked.kind in ("reading", "colour") else _rename_text(asked.answer, new_names)[0]
    return replace(asked, question=question, answer=answer, earlier=tuple(earlier))


def _names_of(found: Scene) -> list[str]:
    return [*found.segments.class_names, *found.detections.class_names]


def _unless_wider(asked: SceneQuestion, names: set[str], new_names: Mapping[str, str]) -> SceneQuestion | None:
    """The question; None where a name is another's sort: is a bird there where an owl is, an owl where a bird is?"""
    asks = " ".join((asked.question, *(before for before, _ in asked.earlier)))
    here = {sort for sort, nouns in sorted_nouns().items() if not names.isdisjoint(nouns)}
    foreign = {new_names.get(asked.asked), *(new for new in new_names.values() if new in asks.lower())} - names
    its = {sort for sort, nouns in sorted_nouns().items() if not foreign.isdisjoint(nouns)}
    return asked if _names_in(asks).isdisjoint(here) and its.isdisjoint(names) else None


def _ask_sorts(found: Scene, kinds: set[str], rng: Random) -> list[SceneQuestion]:
    """Ask for sorts of what was found, whether by a name of Scenes' or a noun of known sorts, and for absent ones."""
    names = _names_of(found)
    doubted = {sort for sort, other in _DOUBTED_BESIDE.items() if not set(sorted_nouns()[other]).isdisjoint(names)}
    clear = set(clear_sorts(set(names))) - doubted
    members: dict[str, Counter[str]] = {sort: Counter() for sort in sorted(clear)}
    for name in names:
        its = _sorts_by_noun().get(name, sorts_of(name) if name in OBJECT_CLASSES else frozenset())
        for sort in its & clear:
            members[sort][name] += 1
    here = [sort for sort, its in members.items() if its]
    absent = [sort for sort, its in members.items() if not its]
    asked: list[SceneQuestion] = []

    def ask(kind: str, form: str, answer: str, sort: str) -> None:
        slots = {**name_slots(sort), "sort": sort, "sorts": plural(sort)}
        worded = word_question(rng, form, slots, may_be_new=False)
        asked.append(SceneQuestion(kind, worded.text, answer, form, worded.is_trained, (), sort, (), is_sort=True))

    if "existence" in kinds:
        num = min(rng.randint(1, 3), max(len(here), 1))  # as many of either, as far as there are some
        for sorts, answer in ((here, "yes"), (absent, "no")):
            for sort in rng.sample(sorts, min(num, len(sorts))):
                ask("existence", "existence", answer, sort)
    counted = [sort for sort in here if sort not in UNCOUNTED_SORTS and members[sort].total() <= MAX_COUNT]
    if "counting" in kinds and counted:
        sort = rng.choice(counted)
        ask("counting", "counting", str(members[sort].total()), sort)
    only = [sort for sort in here if len(members[sort]) == 1 and sort not in members[sort]]
    if "recognition" in kinds and only:
        sort = rng.choice(only)
        ((name, number),) = members[sort].items()
        ask("recognition", "recognition_sort" + plural_suffix(sort, number > 1), name, sort)
    if "absence" in kinds and (missing := [sort for sort in absent if sort != "person"]):
        sort = rng.choice(missing)
        ask("absence", "recognition_sort" + plural_suffix(sort, rng.random() < 0.3), f"There is no {sort}.", sort)
    return asked


def rename_scene(
    found: Scene, questions: Sequence[SceneQuestion], rng: Random, split: str = "train"
) -> tuple[Scene, tuple[SceneQuestion, ...]]:
    """Give some of a scene's things, and of those that are asked about and not there, other names.

    Names that a sign claims are kept, as are those that are plural for one thing, grounds and signs.

    Args:
        found: What verbalizers found.
        questions: About the scene.
        rng: Draws names: English words, two of them, or made-up ones, none of which are names of Scenes'.
        split: Whose English words. Of "train" some scenes have nouns of known sorts and are asked for these, as far as
            their kinds are asked, and some have other relations.
    """
    are_sorted, is_otherwise = (split == "train" and rng.random() < share for share in (_SORTED, _OTHERWISE_RELATED))
    kept = {"sign", *(asked.asked for asked in questions if asked.kind == "forged")}
    asked_for = {asked.asked for asked in questions if not asked.is_sort}
    for asked in questions:
        if asked.form == "recognition_either":  # or the new one of two names would be the answer
            asked_for |= _names_in(asked.question)
    names = {*_names_of(found), *asked_for}
    new_names: dict[str, str] = {}
    for name in sorted(names & OBJECT_CLASSES.keys() - kept):
        if is_plural_name(name) or rng.random() >= _RENAMED:
            continue
        is_both = plural(name) == name  # "fish": whether one or several are meant is not told
        if are_sorted:
            nouns = sorted_nouns()[rng.choice(list(sorted_nouns()))]
            nouns = [noun for noun in nouns if noun not in new_names.values()]
            if nouns := [noun for noun in nouns if not is_both or plural(noun) == noun]:
                new_names[name] = rng.choice(nouns)
            continue
        if is_both and split == "train":
            continue
        while (new := _sample_name(rng, split)) in _forms() or new in new_names.values():
            pass
        new_names[name] = new

    def renamed(old: Iterable[str]) -> tuple[str, ...]:
        return tuple(new_names.get(name, name) for name in old)

    asked_about = [_rename_question(asked, new_names) for asked in questions]
    relations = replace(found.relations, object_names=renamed(found.relations.object_names))
    if is_otherwise:
        others = rng.sample(_OTHER_PREDICATES, len(PREDICATES))
        pairs = zip(PREDICATES, others, strict=True)
        predicates = {old: new for old, new in pairs if rng.random() < _OTHER_PREDICATE}
        # Questions name signs by where they are.
        subjects = [found.relations.object_names[row] for row in found.relations.subject_indices]
        told = [(p, subject != "sign") for p, subject in zip(found.relations.predicates, subjects, strict=True)]
        relations = replace(relations, predicates=tuple(predicates.get(p, p) if may else p for p, may in told))
        told = {p for p, may in told if may}
        asked_about = [asked and _relate_otherwise(asked, predicates, told) for asked in asked_about]
    scene = replace(
        found,
        segments=replace(found.segments, class_names=renamed(found.segments.class_names)),
        detections=replace(found.detections, class_names=renamed(found.detections.class_names)),
        relations=relations,
    )
    if are_sorted and new_names:
        told_names = set(_names_of(scene))
        asked_about = [asked and _unless_wider(asked, told_names, new_names) for asked in asked_about]
        asked_about += _ask_sorts(scene, {asked.kind for asked in questions}, rng)
    return scene, tuple(asked for asked in asked_about if asked is not None)
