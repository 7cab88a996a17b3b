"""Rows of one batch that stream, sample, stop and end each by itself, for every model."""

import json
import math

import pytest
import torch
from emu_builders import save_emu
from flamingo_builders import save_flamingo
from pipeline_builders import build_scene, draw_image, write_tiny_checkpoint
from prismer_builders import save_prismer
from prompted_builders import save_prompted

from moai import Pipeline
from moai.pipeline.queries import Query
from moai.pipeline.rows import AnswerRow
from verbalizers import Scene

QUESTIONS = ["What is it?", "Where is the cat, and what is beside it?", "Why?", "How many dogs are there?"]
BUILDERS = {
    "moai": write_tiny_checkpoint,
    "llava": lambda folder: save_prompted(folder, "llava"),
    "qwen2_vl": lambda folder: save_prompted(folder, "qwen2_vl"),
    "flamingo": save_flamingo,
    "emu": save_emu,
    "prismer": save_prismer,
}


@pytest.fixture(scope="module", params=BUILDERS)
def pipe(request, tmp_path_factory):
    return Pipeline.from_pretrained(BUILDERS[request.param](tmp_path_factory.mktemp(request.param)), verbalizers=[])


def answer_rows(pipe, rows, messages=None, num_images=1):
    """Answers of a batch of one question per row, in order; queries that failed are left out."""
    queries = []
    for index in range(len(rows)):
        parts = [{"type": "image"}] * num_images + [{"type": "text", "text": QUESTIONS[index % 4]}]
        asked = messages or [{"role": "user", "content": parts}]
        images = [draw_image(seed) for seed in range(num_images)]
        scene = build_scene() if num_images == 1 else Scene((60, 80))  # two of the former are too long for some
        queries.append(Query(index, images, asked, [scene] * num_images))
    pipe.prepare_queries(queries, 1)
    assert [query.error for query in queries] == [None] * len(rows)
    pipe.verbalize_queries(queries)
    return [answer.answer for _, answer in sorted(pipe.generate_answers(queries, rows=dict(enumerate(rows))).items())]


def test_rows_stream_what_they_answer_alone_when_a_batch_mixes_lengths(pipe):
    pieces = [[] for _ in range(4)]
    rows = [AnswerRow(3 + 4 * i, on_text=pieces[i].append) for i in range(4)]
    together = answer_rows(pipe, rows)
    for index, row in enumerate(rows):
        alone = pipe(draw_image(), QUESTIONS[index], build_scene(), max_new_tokens=3 + 4 * index, num_beams=1)
        assert together[index] == alone.answer == "".join(pieces[index])
        assert row.num_tokens <= row.max_new_tokens and row.finish_reason in ("stop", "length")
        assert row.num_prompt_tokens > 0


def test_rows_end_by_themselves_when_stopped_cancelled_or_full(pipe):
    (whole,) = answer_rows(pipe, [AnswerRow(20)])
    stop = whole[len(whole) // 2 :][:2]
    rows = [AnswerRow(20, stops=(stop,)), AnswerRow(20), AnswerRow(1), AnswerRow(20)]
    rows[1].cancel()
    answers = answer_rows(pipe, [rows[0]]) + answer_rows(pipe, rows)[1:]
    assert answers[0] == whole[: whole.index(stop)].rstrip() and rows[0].finish_reason == "stop"
    assert rows[1].finish_reason == "cancelled" and rows[1].num_tokens == 0
    assert rows[2].num_tokens == 1 and rows[3].num_tokens > 1


def test_rows_sample_from_their_own_seeds_when_neighbours_are_greedy(pipe):
    def sample(seed, **kwargs):
        return AnswerRow(12, temperature=2.0, seed=seed, **kwargs)

    (greedy,) = answer_rows(pipe, [AnswerRow(12)])
    first = answer_rows(pipe, [AnswerRow(12), sample(1)])
    again = answer_rows(pipe, [sample(5), sample(1)])
    assert first[1] == again[1] and first[0] == greedy
    assert len({*first, *again, *answer_rows(pipe, [sample(7)])}) > 2
    assert answer_rows(pipe, [sample(3, top_p=1e-9)]) == [greedy]


def test_rows_search_with_beams_when_they_are_asked_to(pipe):
    rows = [AnswerRow(9, num_beams=3) for _ in range(2)]
    together = answer_rows(pipe, rows)
    for index, row in enumerate(rows):
        alone = pipe(draw_image(), QUESTIONS[index], build_scene(), max_new_tokens=9, num_beams=3)
        assert together[index] == row.text == alone.answer
        assert 0 < row.num_tokens <= 9 and row.finish_reason in ("stop", "length")
    stop = together[0][len(together[0]) // 2 :][:2]
    row = AnswerRow(9, stops=(stop,), num_beams=3)
    assert answer_rows(pipe, [row]) == [together[0][: together[0].index(stop)].rstrip()]
    assert row.finish_reason == "stop"
    row = AnswerRow(9, num_beams=3)
    row.cancel()
    assert answer_rows(pipe, [row]) == [""] and row.finish_reason == "cancelled"


def test_rows_note_probabilities_when_they_are_asked_for(pipe):
    rows = [AnswerRow(5, num_likeliest=2), AnswerRow(5), AnswerRow(5, num_likeliest=0, temperature=1.0, seed=1)]
    answer_rows(pipe, rows)
    assert rows[1].choices == [] and 0 < len(rows[0].choices) <= 5
    for choice in rows[0].choices:
        assert choice.likeliest[0] == (choice.token, choice.logprob) and choice.logprob <= 0
    assert all(choice.likeliest == () for choice in rows[2].choices)


def test_pipeline_answers_conversations_about_several_images_or_none_when_the_model_reads_them(pipe):
    image, family = {"type": "image"}, pipe.model.config.model_type
    turns = [
        {"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
        {"role": "user", "content": [image, {"type": "text", "text": "And this?"}]},
    ]
    if family == "prismer":
        query = Query(0, [draw_image(0), draw_image(1)], turns, [None, None])
        pipe.prepare_queries([query], 1)
        assert "in turn about one image" in query.error
        turns[2]["content"].pop(0)
        assert answer_rows(pipe, [AnswerRow(8)], turns)
        return
    first, other = answer_rows(pipe, [AnswerRow(8)], turns, 2), answer_rows(pipe, [AnswerRow(8)], turns[:1])
    assert first and other
    nothing = Query(0, [], [{"role": "user", "content": [{"type": "text", "text": "What is it?"}]}], [])
    pipe.prepare_queries([nothing], 1)
    if family == "flamingo":
        assert "at least one image" in nothing.error
        return
    seen = Query(1, [draw_image()], turns[:1], [build_scene()])
    pipe.prepare_queries([seen], 1)
    pipe.verbalize_queries([nothing, seen])
    both = pipe.generate_answers([nothing, seen], rows={0: AnswerRow(8), 1: AnswerRow(8)})
    alone = pipe.generate_answers([nothing], rows={0: AnswerRow(8)})
    assert both[0].answer == alone[0].answer and both[1].answer == other[0]
    assert both[0].scenes == () and both[1].scene is not None


def say_probability(pipe, max_new_tokens=8, **settings):
    """The answer, and the probability of its tokens as the model's own scores tell it."""
    settings = {"num_beams": 1, "output_scores": True, "is_reporting": True} | settings
    answer = pipe(draw_image(), QUESTIONS[0], build_scene(), max_new_tokens=max_new_tokens, **settings)
    return answer, math.prod(token["probability"] for token in answer.report["tokens"])


def test_confidence_is_the_probability_of_the_tokens_when_they_are_generated(pipe):
    greedy, probability = say_probability(pipe)
    assert greedy.confidence == pytest.approx(probability, rel=1e-4) and 0 < greedy.confidence < 1
    beams, probability = say_probability(pipe, num_beams=3)
    assert beams.confidence == pytest.approx(probability, rel=0.06)  # shares of what cannot be said are counted there
    torch.manual_seed(0)
    warm, probability = say_probability(pipe, do_sample=True, temperature=1.0, top_k=0)
    assert warm.confidence == pytest.approx(probability, rel=1e-4)
    torch.manual_seed(0)
    cold, _ = say_probability(pipe, do_sample=True, temperature=1e-4)
    assert cold.answer == greedy.answer and cold.confidence == pytest.approx(greedy.confidence, rel=1e-4)
    long, _ = say_probability(pipe, 25, min_new_tokens=25)
    mean = sum(math.log(token["probability"]) for token in long.report["tokens"]) / 25
    assert long.confidence == pytest.approx(math.exp(mean), rel=1e-3)


def test_confidence_is_the_same_when_batched_streamed_uncached_followed_or_stopped(pipe):
    alone = [say_probability(pipe)[0]]
    (whole,) = answer_rows(pipe, [AnswerRow(8)])
    settings = {"max_new_tokens": 8, "num_beams": 1}
    together = pipe(draw_image(), QUESTIONS, build_scene(), **settings)
    streamed = pipe(draw_image(), QUESTIONS[0], build_scene(), stream=lambda piece: None, **settings)
    uncached = pipe(draw_image(), QUESTIONS[0], build_scene(), use_cache=False, **settings)
    rows = [AnswerRow(8), AnswerRow(3)]
    answer_rows(pipe, rows)
    for other in (together[0], streamed, uncached, rows[0]):
        assert other.confidence == pytest.approx(alone[0].confidence, rel=1e-3)
    stop = whole[len(whole) // 2 :][:2]
    row = AnswerRow(8, stops=(stop,))
    answer_rows(pipe, [row])
    stopping = settings | {"stop_strings": [stop]}
    single = pipe(draw_image(), QUESTIONS[0], build_scene(), **stopping)
    first = pipe(draw_image(), QUESTIONS, build_scene(), **stopping)[0]
    assert first.answer == single.answer and first.confidence == pytest.approx(single.confidence, rel=1e-3)
    assert row.confidence > alone[0].confidence


def test_answer_is_unsure_when_its_confidence_is_below_the_checkpoints(pipe, tmp_path):
    answer, _ = say_probability(pipe)
    assert answer.is_unsure == (answer.confidence < 0.5)
    pipe.save_pretrained(tmp_path / "sure")
    file = tmp_path / "sure" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"confidence_threshold": answer.confidence * 1.01}))
    read = Pipeline.from_pretrained(tmp_path / "sure", verbalizers=[])
    assert say_probability(read)[0].is_unsure and say_probability(read)[0].to_dict()["is_unsure"]
    read.model.config.confidence_threshold = answer.confidence * 0.99
    read.save_pretrained(tmp_path / "again")
    read = Pipeline.from_pretrained(tmp_path / "again", verbalizers=[])
    assert not say_probability(read)[0].is_unsure
    read.model.config.confidence_threshold = "half"
    with pytest.raises(ValueError, match="expected a `confidence_threshold` from 0 to 1 .* got 'half'"):
        say_probability(read)


def test_confidence_is_a_share_of_the_choices_when_there_are_some(pipe):
    answer = pipe(draw_image(), QUESTIONS[0], build_scene(), options={"choices": "a dog,cats"}, is_reporting=True)
    shares = torch.tensor(list(answer.report["choices"].values())).softmax(0)
    assert answer.confidence == pytest.approx(float(shares.max()), rel=1e-4) and answer.confidence >= 0.5
