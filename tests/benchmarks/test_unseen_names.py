"""Names and words that the measurement asks for stand in no training, and are all that it asks for."""

from collections import Counter

import torch

from benchmarks.unseen_names import KINDS, SORTS, answer_told, commonest_answers, sort_questions, unseen_questions
from moai.checkpoints.io.lookup import find_checkpoint
from moai.models.moai.modeling_moai import MoAIForConditionalGeneration
from moai.models.moai.processing_moai import MoAIProcessor
from moai.scenes.renaming import sorted_nouns
from moai.scenes.signs import sign_words
from moai.scenes.vocabulary import OBJECT_CLASSES, STUFF_NAMES


def test_answers_are_words_of_no_training_and_stand_in_the_findings() -> None:
    trained = {word.upper() for word in sign_words("train")}
    asked = []
    for findings, questions in unseen_questions(40):
        for question in questions:
            said = question.answer if question.kind != "reading" else f'"{question.answer}"'
            words = {word for word in question.answer.upper().split() if word.isalpha()}
            assert not words & trained and question.answer not in {*OBJECT_CLASSES, *STUFF_NAMES}
            asked.append((question.kind, said in findings))
    found = Counter(kind for kind, is_found in asked if is_found)
    assert set(found) == set(KINDS)
    assert all(is_found for kind, is_found in asked if kind != "reading")  # of lines, parts may be asked for


def test_sorts_are_asked_for_of_known_names_and_no_answer_is_the_commonest() -> None:
    told = list(sort_questions(120))
    asked = [(findings, question) for findings, questions in told for question in questions]
    assert {question.kind for _, question in asked} == set(SORTS)
    assert all(question.is_sort and not question.earlier for _, question in asked)
    which = [(findings, question.answer) for findings, question in asked if question.kind == "recognition"]
    named = [(findings, answer) for findings, answer in which if not answer.startswith("There is no ")]
    assert all(answer in findings for findings, answer in named)
    nouns = {noun for its in sorted_nouns().values() for noun in its}
    assert any(answer in nouns for _, answer in named) and any(answer in OBJECT_CLASSES for _, answer in named)
    number = Counter(question.kind for _, question in asked)
    assert all(2 * guessed <= number[kind] + 1 for kind, guessed in commonest_answers(told).items())


def test_a_model_is_asked_each_question_once() -> None:
    folder = find_checkpoint("moai-nano")
    model = MoAIForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    asked, right = answer_told(model, MoAIProcessor.from_pretrained(folder), unseen_questions(6))
    assert asked == Counter(question.kind for _, questions in unseen_questions(6) for question in questions)
    assert all(right[kind] <= asked[kind] for kind in asked) and right["reading"] > 0
