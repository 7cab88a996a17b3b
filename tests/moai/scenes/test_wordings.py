"""Wordings: enough of them, a third never trained, and each style as it says."""

import string
from random import Random
from string import Formatter

import pytest

from moai.scenes.questions import QUESTION_KINDS
from moai.scenes.scenes import Scenes
from moai.scenes.wordings import (
    FORMS,
    FRAMES,
    SUFFIXES,
    is_never_trained,
    name_slots,
    training_wordings,
    word_question,
)

ALL_FORMS = {**FORMS, "frames": FRAMES, "suffixes": SUFFIXES}
#: What templates of a form may name besides the slots of a name.
OTHER_SLOTS = {
    **{"recognition_region": ["where"], "recognition_box": ["box"], "localisation_which": ["which"]},
    **dict.fromkeys(("relation_object", "relation_subject"), ["predicate"]),
    **dict.fromkeys(("reading_which", "reading_word"), ["which"]),
    **{"comparison": ["more", "other"], "frames": ["q"]},
    **dict.fromkeys(("recognition_either", "localisation_either", "colour_either"), ["first", "second"]),
    **{"recognition_sort": ["sort"], "recognition_sorts": ["sorts"]},
}
OPTIONAL_SLOTS = {
    "recognition_largest": {"sort"},
    "recognition_largests": {"sort", "sorts"},
    "recognition_sorts": {"sort"},
}


def plain_wording(text: str) -> str:
    """A template without what makes no other wording: case, marks, spelling, and what an image is called."""
    text = text.casefold().replace("color", "colour").replace("centre", "center").replace("{is}", "is")
    for called in ("photograph", "photo", "picture", "scene", "shot"):
        text = text.replace(called, "image")
    return " ".join(text.translate({ord(mark): " " for mark in string.punctuation if mark not in "{}"}).split())


def test_every_kind_has_twenty_wordings_and_keeps_a_third_from_training():
    forms = {
        **{kind: [kind] for kind in QUESTION_KINDS if kind in FORMS},
        "recognition": ["recognition_region", "recognition_box"],
        "relation": ["relation_object", "relation_subject"],
    }
    for kind, names in forms.items():
        wordings = [text for name in names for text in FORMS[name]]
        assert len(wordings) >= (16 if kind == "localisation" else 20), kind
    for form, wordings in FORMS.items():
        assert len(set(wordings)) == len(wordings)
        kept = sum(is_never_trained(number) for number in range(len(wordings)))
        assert 0.2 < kept / len(wordings) < 0.4, form


def _templates_met(split, length):
    """Templates whose fixed words a split's questions contain, as they are written."""
    met = set()
    for sample in Scenes(split, image_size=32, length=length, num_questions=13):
        for question in sample.questions:
            for template in (*FORMS[question.form], *training_wordings()[question.form]):
                if question.asked and question.question == _filled(template, question.asked):
                    met.add(template)
    return met


def _filled(template, name):
    slots = name_slots(name)
    slots |= {key.capitalize(): value[:1].upper() + value[1:] for key, value in slots.items()}
    try:
        text = template.format(**slots)
    except KeyError:
        return None
    return text[:1].upper() + text[1:]


def test_training_never_has_the_wordings_that_are_kept_for_tests_when_asked():
    kept = {text for wordings in FORMS.values() for number, text in enumerate(wordings) if is_never_trained(number)}
    trained, tested = _templates_met("train", 150), _templates_met("test", 150)
    more = {text for wordings in training_wordings().values() for text in wordings}
    assert len(trained) > 100 and len(trained & more) > 50 and not trained & kept and not tested & more
    assert len(tested & kept) > 25 and len(tested - kept) > 25
    assert all(q.is_trained_wording for s in Scenes("train", image_size=32, length=20) for q in s.questions)


def test_training_wordings_are_none_of_those_kept_from_it():
    """Not even with another mark, spelling or word for an image."""
    more = training_wordings()
    assert set(more) == set(ALL_FORMS) and sum(map(len, more.values())) > 1000
    for form, wordings in more.items():
        listed = {plain_wording(text) for text in ALL_FORMS[form]}
        plain = [plain_wording(text) for text in wordings]
        assert len(set(plain)) == len(plain) and not listed & set(plain), form
    assert plain_wording("Summarise the photo!") == plain_wording("summarise the PICTURE.")


def test_training_wordings_can_be_filled_in_when_their_form_is_asked():
    slots = set(name_slots("dog"))
    for form, wordings in training_wordings().items():
        known = slots | set(OTHER_SLOTS.get(form, ()))
        for text in wordings:
            named = {slot for _, slot, _, _ in Formatter().parse(text) if slot is not None}
            assert {slot[:1].lower() + slot[1:] for slot in named} <= known | OPTIONAL_SLOTS.get(form, set()), text
            assert set(OTHER_SLOTS.get(form, ())) <= {slot.lower() for slot in named}, text
            assert text[0] in "{" or text[0].isupper() or form == "frames", text
            if form in ("existence", "counting"):
                assert {slot.lower() for slot in named} & {"a", "name", "names"}, text


def test_other_splits_have_no_training_wording_when_they_are_asked():
    """The figures of tests stay what they were."""
    met = {may_be_new: set() for may_be_new in (False, True)}
    for seed in range(3000):
        for may_be_new, texts in met.items():
            worded = word_question(Random(seed), "reading", {}, may_be_new)
            texts.add(plain_wording(worded.text))
    more = {plain_wording(text) for text in training_wordings()["reading"]}
    assert len(more & met[False]) > 0.9 * len(more) and not more & met[True]


def test_wording_says_whether_training_may_have_met_it_when_drawn():
    for seed in range(300):
        worded = word_question(Random(seed), "counting", name_slots("dog"), may_be_new=True)
        words = worded.text.casefold().rstrip("?.")
        for number, template in enumerate(FORMS["counting"]):
            if words == _filled(template, "dog").casefold().rstrip("?."):
                assert not (worded.is_trained and is_never_trained(number))
                assert worded.is_trained or is_never_trained(number)
    assert {word_question(Random(k), "colour", name_slots("car"), False).is_trained for k in range(50)} == {True}


def test_styles_and_frames_occur_when_many_questions_are_worded():
    texts = [word_question(Random(k), "existence", name_slots("dog"), True).text for k in range(800)]
    assert any(text.isupper() for text in texts) and any(text.islower() for text in texts)
    assert any(text[-1] not in "?.:" for text in texts)
    assert any("using a single word or phrase" in text for text in texts)
    assert any(text.startswith("Please tell me") for text in texts)
    assert len(set(texts)) > 150


@pytest.mark.parametrize("name", ["scissors", "person", "apple"])
def test_slots_agree_with_the_name_when_it_is_plural_or_not(name):
    slots = name_slots(name)
    is_plural = name == "scissors"
    assert (slots["is"], slots["it"]) == (("are", "they") if is_plural else ("is", "it"))
    assert slots["a"] == {"scissors": "scissors", "person": "a person", "apple": "an apple"}[name]
