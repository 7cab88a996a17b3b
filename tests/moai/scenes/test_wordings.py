"""Wordings: enough of them, a third never trained, and each style as it says."""

from random import Random

import pytest

from moai.scenes.questions import QUESTION_KINDS
from moai.scenes.scenes import Scenes
from moai.scenes.wordings import FORMS, is_never_trained, name_slots, word_question


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
            for template in FORMS[question.form]:
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
    assert len(trained) > 50 and not trained & kept
    assert len(tested & kept) > 25 and len(tested - kept) > 25
    assert all(q.is_trained_wording for s in Scenes("train", image_size=32, length=20) for q in s.questions)


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
