"""What holds for every model of images and texts in one sequence behind the pipeline."""

from __future__ import annotations

import json

import numpy as np
import pytest
from emu_builders import make_image, save_emu
from flamingo_builders import save_flamingo

from moai import Pipeline
from moai.pipeline.answers import PipelineError
from verbalizers import Scene, TextLines

ASKED = {"max_new_tokens": 5, "min_new_tokens": 5}


@pytest.fixture(scope="module", params=[save_emu, save_flamingo], ids=["emu", "flamingo"])
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline.from_pretrained(request.param(tmp_path_factory.mktemp("interleaved")))


def test_answers_are_those_of_single_questions_when_batched_with_beams(pipeline: Pipeline) -> None:
    images, questions = [make_image(0), make_image(1)], ["What?", "How many are there?"]
    for settings in (ASKED, ASKED | {"num_beams": 3}):
        together = [answer.answer for answer in pipeline(images, questions, **settings)]
        alone = [pipeline(image, asked, **settings).answer for image, asked in zip(images, questions, strict=True)]
        assert together == alone
        assert together[0] != together[1]


def test_verbalization_reaches_the_prompt_when_a_scene_is_given(pipeline: Pipeline) -> None:
    image = make_image(0)
    lines = TextLines(np.array([[[1, 1], [9, 1], [9, 5], [1, 5]]]), ("STOP",), np.ones(1))
    scene = Scene((image.height, image.width), text_lines=lines)
    plain, told = pipeline(image, "What?", **ASKED), pipeline(image, "What?", scene, **ASKED)
    assert "STOP" in told.auxiliary_text and not plain.auxiliary_text
    assert told.answer != plain.answer


def test_likeliest_choice_is_the_answer_when_choices_are_given(pipeline: Pipeline) -> None:
    images = [make_image(seed) for seed in range(3)]
    options = {"choices": ["yes", "no", "perhaps"]}
    together = pipeline(images, "Is it?", options=options, is_reporting=True)
    for image, answer in zip(images, together, strict=True):
        scores = answer.report["choices"]
        assert list(scores) == options["choices"] and answer.answer == max(scores, key=scores.get)
        alone = pipeline(image, "Is it?", options=options, is_reporting=True)
        assert alone.report["choices"] == pytest.approx(scores, abs=1e-4)
    assert json.loads(json.dumps(together[0].to_dict()))["choices"] == pytest.approx(together[0].report["choices"])
    assert "".join(pipeline.stream(images[0], "Is it?", options=options)) == together[0].answer


def test_too_long_question_fails_alone_when_batched(pipeline: Pipeline) -> None:
    questions = ["What?", "x" * 600]
    answers = pipeline([make_image(0)] * 2, questions, on_error="skip", **ASKED)
    assert answers[0].error is None and "at most 507 tokens" in answers[1].error
    with pytest.raises(PipelineError, match="item 1"):
        pipeline([make_image(0)] * 2, questions, **ASKED)
