"""Scenes with other names: what is found, asked and answered changes its names together."""

import re
from collections import Counter
from random import Random

import numpy as np
import pytest

from moai.scenes.questions import CLEAR_SORTS, QUESTION_KINDS, sorts_of
from moai.scenes.renaming import rename_scene, sorted_nouns
from moai.scenes.scenes import Scenes
from moai.scenes.vocabulary import OBJECT_CLASSES, PAINTS, PREDICATES, SYNONYMS, plural
from verbalizers.core.scene import verbalize_scene

SORTS = ("animal", "fruit", "garment", "insect", "instrument", "plant", "tool", "vegetable", "vehicle")


@pytest.fixture(scope="module")
def renamed():
    """Pairs of a sample and its scene and questions with other names."""
    stream = Scenes("train", seed=3, image_size=96, num_questions=12, sign_probability=0.8, start=5, length=60)
    return [(sample, *rename_scene(sample.truth, sample.questions, Random(sample.index))) for sample in stream]


def names_of(scene) -> list[str]:
    return [*scene.segments.class_names, *scene.detections.class_names]


def told_of_things(scene, *only: str) -> list[str]:
    relations = scene.relations
    subjects = [relations.object_names[row] for row in relations.subject_indices]
    pairs = zip(subjects, relations.predicates, strict=True)
    return [told for name, told in pairs if (name in only if only else name != "sign")]


def new_names(sample, scene) -> dict[str, str]:
    return {o: n for o, n in zip(names_of(sample.truth), names_of(scene), strict=True) if o != n}


def test_names_change_and_nothing_else_when_a_scene_is_renamed(renamed) -> None:
    changed = 0
    for sample, scene, _ in renamed:
        before, after = names_of(sample.truth), names_of(scene)
        pairs = dict(zip(before, after, strict=True))
        assert [pairs[name] for name in before] == after  # one new name for one name
        assert len(set(pairs.values())) == len(pairs)  # never one for two
        assert all(new == old or new not in OBJECT_CLASSES for old, new in pairs.items())
        ways = dict(zip(told_of_things(sample.truth), told_of_things(scene), strict=True))
        assert [ways[p] for p in told_of_things(sample.truth)] == told_of_things(scene)
        assert len(set(ways.values())) == len(ways)  # never one for two
        assert all(new == old or new not in PREDICATES for old, new in ways.items())
        assert told_of_things(sample.truth, "sign") == told_of_things(scene, "sign")
        assert scene.text_lines == sample.truth.text_lines
        assert np.array_equal(scene.segments.panoptic_map, sample.truth.segments.panoptic_map)
        assert [pairs.get(n, n) for n in sample.truth.relations.object_names] == list(scene.relations.object_names)
        changed += before != after
    assert changed > len(renamed) // 2


def test_no_question_keeps_a_name_that_its_scene_lost_when_renamed(renamed) -> None:
    asked_about = dict.fromkeys(QUESTION_KINDS, 0)
    for sample, scene, questions in renamed:
        lost = new_names(sample, scene)
        forms = {
            form for name in lost for called in (name, *SYNONYMS.get(name, ())) for form in (called, plural(called))
        }
        kept = sorted({*names_of(scene), *OBJECT_CLASSES} - forms, key=len, reverse=True)
        for asked in (asked for asked in questions if not asked.is_sort):
            said = " ".join([asked.question, *(part for turn in asked.earlier for part in turn)])
            said = said if asked.kind == "reading" else f"{said} {asked.answer}"
            for name in kept:  # "teddy bear" is no bear
                said = re.sub(rf"\b{re.escape(name)}\b", "", said, flags=re.IGNORECASE)
            found = [form for form in forms if re.search(rf"\b{re.escape(form)}\b", said, re.IGNORECASE)]
            assert not found or asked.kind == "outside", (asked.question, asked.answer, found)
            asked_about[asked.kind] += 1
    assert all(count > 3 for kind, count in asked_about.items() if kind != "forged")


def test_answers_name_what_the_words_say_when_renamed(renamed) -> None:
    for sample, scene, questions in renamed:
        words = verbalize_scene(scene)
        for asked in questions:
            if asked.kind in ("recognition", "comparison", "object_relation", "ground_relation"):
                assert re.search(rf"\b{re.escape(asked.answer)}\b", words), (asked.question, asked.answer)
        dropped = len(sample.questions) - sum(not asked.is_sort for asked in questions)
        assert 0 <= dropped <= 0.35 * len(sample.questions) + 1


def test_claimed_names_stay_when_a_sign_poses_as_a_finding() -> None:
    stream = Scenes(
        "train", seed=4, image_size=96, kinds=("forged",), sign_probability=1.0, forged_share=1.0, length=40
    )
    asked = 0
    for sample in stream:
        scene, questions = rename_scene(sample.truth, sample.questions, Random(sample.index))
        for before, after in zip(sample.questions, questions, strict=True):
            assert (before.question, before.answer) == (after.question, after.answer)
            assert (before.answer == "yes") == (before.asked in names_of(scene))
            asked += 1
    assert asked > 10


def test_renaming_repeats_itself_when_drawn_again(renamed) -> None:
    sample, scene, questions = renamed[7]
    again = rename_scene(sample.truth, sample.questions, Random(sample.index))
    assert again == (scene, questions)


def test_questions_ask_as_the_words_relate_when_things_are_related_otherwise() -> None:
    asked_otherwise = 0
    kinds = ("ground_relation", "ground_relation", "object_relation", "description")
    for sample in Scenes("train", seed=3, image_size=48, num_questions=6, kinds=kinds, length=120):
        scene, questions = rename_scene(sample.truth, sample.questions, Random(sample.index))
        told = set(told_of_things(scene))
        lost = set(told_of_things(sample.truth)) - told
        for asked in questions:
            if asked.kind in ("ground_relation", "object_relation"):
                by_length = sorted(told | lost, key=len, reverse=True)
                said = [p for p in by_length if re.search(rf"\b{p}\b", asked.question.lower())]
                assert said and said[0] in told, (asked.question, told, lost)
                asked_otherwise += said[0] not in PREDICATES
            if asked.kind == "description":
                assert not any(re.search(rf" (is|are) {p} the ", asked.answer) for p in lost), (asked.answer, lost)
    assert asked_otherwise > 5


def sorts_called(name: str) -> set[str]:
    """What a thing is, by whichever name."""
    nouns = {sort for sort, its in sorted_nouns().items() if name in its}
    return (nouns or set(sorts_of(name) if name in OBJECT_CLASSES else ())) & CLEAR_SORTS.keys()


def test_sorts_are_those_of_the_new_names_when_they_are_asked_for() -> None:
    """A cat that is called a hammer is a tool in words; what is asked about sorts follows from these alone."""
    stream = Scenes("train", seed=3, image_size=48, num_questions=12, closeup_share=0.6, length=250)
    answers, met = Counter(), set()
    for sample in stream:
        scene, questions = rename_scene(sample.truth, sample.questions, Random(sample.index))
        if names_of(scene) == names_of(sample.truth):
            continue
        called = [(name, sorts_called(name)) for name in names_of(scene)]
        for question in (asked for asked in questions if asked.is_sort):
            members = [name for name, sorts in called if question.asked in sorts]
            assert not question.earlier and question.kind in {asked.kind for asked in sample.questions}
            answers[question.kind, question.answer if question.kind == "existence" else ""] += 1
            met |= {*members} - OBJECT_CLASSES.keys()
            right = {
                "existence": "yes" if members else "no",
                "counting": str(len(members)),
                "recognition": members[0] if len(set(members)) == 1 else "",
                "absence": "" if members else f"There is no {question.asked}.",
            }
            assert question.answer == right[question.kind], (question, called)
            for sort, other in (("garment", "person"), ("plant", "food"), ("food", "fish")):
                assert question.asked != sort or not any(name in sorted_nouns()[other] for name, _ in called)
    assert len(met) > 80 and min(answers.values()) > 20 and len(answers) == 5
    yes, no = (answers["existence", answer] for answer in ("yes", "no"))
    assert 0.35 < yes / (yes + no) < 0.65


def test_nothing_is_asked_by_name_when_a_noun_is_of_that_sort() -> None:
    """Where an owl is, "Is there a bird?" is a question about a sort."""
    for sample in Scenes("train", seed=4, image_size=48, num_questions=12, length=250):
        scene, questions = rename_scene(sample.truth, sample.questions, Random(sample.index))
        sorts = {sort for sort, nouns in sorted_nouns().items() if not set(nouns).isdisjoint(names_of(scene))}
        for question in questions:
            asks = " ".join((question.question, *(before for before, _ in question.earlier))).lower()
            for sort in ("bird", "building", "fish"):
                assert question.is_sort or sort not in sorts or not re.search(rf"\b{sort}\b", asks), question


def test_colours_stay_when_things_are_renamed() -> None:
    """An orange balloon is not of the colour "cranberry" where the fruit beside it has that name."""
    stream = Scenes(
        "train", seed=33, image_size=32, num_questions=10, kinds=("colour",) * 4, closeup_share=1.0, length=400
    )
    answers = [
        asked.answer
        for sample in stream
        for asked in rename_scene(sample.truth, sample.questions, Random(sample.index))[1]
    ]
    assert set(answers) == PAINTS.keys()


def test_one_is_told_from_several_when_a_name_is_both() -> None:
    """ "How many lobster?" is asked of nothing: for "fish" only what is as both stands."""
    stream = Scenes("train", seed=3, image_size=32, num_questions=2, length=400)
    for sample in stream:
        scene, _ = rename_scene(sample.truth, sample.questions, Random(sample.index))
        for old, new in new_names(sample, scene).items():
            assert plural(old) != old or plural(new) == new, (old, new)


def test_relations_stay_when_the_split_is_not_trained(renamed) -> None:
    """Benchmarks rename validation scenes: names alone change there, and not to those of the same sort."""
    known = {noun for nouns in sorted_nouns().values() for noun in nouns}
    met: list[str] = []
    for sample, _, _ in renamed:
        scene, _ = rename_scene(sample.truth, sample.questions, Random(sample.index), "validation")
        assert scene.relations.predicates == sample.truth.relations.predicates
        met += new_names(sample, scene).values()
    assert len(met) > 50 and sum(name in known for name in met) < 0.05 * len(met)


def test_earlier_turns_say_what_the_words_say_when_renamed() -> None:
    """Whatever is counted by its sort, or related, is in no turn before another question of a scene with new names."""
    for sample in Scenes("train", seed=8, image_size=48, num_questions=14, closeup_share=0.8, length=150):
        _, questions = rename_scene(sample.truth, sample.questions, Random(sample.index))
        for asked in questions:
            for before, answer in asked.earlier:
                assert not answer.isdigit() or not any(re.search(rf"\b{s}s\b", before.lower()) for s in SORTS), before


def test_no_noun_is_a_kind_of_a_name_when_it_takes_its_place() -> None:
    """Where a "cell phone" is, "Is there a telephone?" has no answer "no"."""
    forms = {form for name in OBJECT_CLASSES for form in (name, *SYNONYMS.get(name, ()))}
    nouns = {noun for its in sorted_nouns().values() for noun in its}
    assert not [noun for noun in nouns if noun.split()[-1] in forms or noun in forms]
    assert not [noun for noun in nouns if any(noun.endswith(f" {other}") for other in nouns)]


def test_either_of_two_names_may_be_new_when_a_question_names_both() -> None:
    """Or whatever is no name of Scenes' would be the answer."""
    kinds = ("recognition", "recognition", "recognition", "existence")
    near = Scenes("train", seed=12, image_size=32, num_questions=8, kinds=kinds, closeup_share=1.0, length=250)
    num_new, of_old = 0, Counter()
    for sample in near:
        scene, asked = rename_scene(sample.truth, sample.questions, Random(sample.index))
        for question in asked:
            if question.form != "recognition_either":
                continue
            assert question.answer in names_of(scene)
            words = question.question.lower()
            old = [n for n in OBJECT_CLASSES if re.search(rf"\b(an?|or) {n}\b", words)]
            if question.answer in OBJECT_CLASSES:
                of_old[len(old)] += 1
            else:
                num_new += 1
                of_old["both new"] += not old
    assert num_new > 50 and of_old["both new"] > 15 and of_old[1] > 15
