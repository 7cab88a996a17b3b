"""The API over real sockets, asked by the official client."""

import json
import threading
import time
from pkgutil import resolve_name

import openai
import pytest
from pipeline_builders import build_scene, draw_image, write_tiny_checkpoint
from serving_builders import build_body, build_message, build_reader, encode_image, send, serving

from moai import Pipeline
from moai.models.registry import MODEL_SPECS, PROMPTED


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def app(folder):
    with serving(folder, [build_reader()], max_new_tokens=40, max_body_bytes=2**20, max_pixels=100_000) as app:
        yield app


@pytest.fixture(scope="module")
def client(app):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{app.state.port}/v1", api_key="none", max_retries=0, timeout=60)


def complete(client, *images, question="What is it?", moai=None, **settings):
    images = images or (draw_image(),)
    messages = settings.pop("messages", None) or [build_message(question, *images)]
    extra = {} if moai is None else {"extra_body": {"moai": moai}}
    return client.chat.completions.create(model="tiny", messages=messages, **{"max_tokens": 8} | settings, **extra)


def test_answer_is_the_pipelines_when_the_official_client_asks(client, folder, app):
    pipeline = Pipeline.from_pretrained(folder, verbalizers=[])
    pipeline.verbalizers = [build_reader()]
    reply = complete(client)
    assert reply.choices[0].message.content == pipeline(draw_image(), "What is it?", max_new_tokens=8).answer
    assert reply.choices[0].finish_reason in ("stop", "length") and reply.model == "tiny"
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens > 8
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_stream_says_what_the_answer_says_when_it_is_read(client):
    whole = complete(client, logprobs=True, top_logprobs=2)
    pieces = list(complete(client, logprobs=True, top_logprobs=2, stream=True, stream_options={"include_usage": True}))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces[:-1]) == whole.choices[0].message.content
    assert pieces[-1].usage == whole.usage
    assert pieces[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    told = [token for piece in pieces[1:-1] for token in piece.choices[0].logprobs.content]
    assert [token.token for token in told] == [token.token for token in whole.choices[0].logprobs.content]
    assert all(len(token.top_logprobs) == 2 for token in told)


def test_settings_count_when_a_request_has_them(client):
    whole = complete(client).choices[0].message.content
    stop = whole[2:4]
    stopped = complete(client, stop=[stop])
    assert stopped.choices[0].message.content == whole[: whole.index(stop)].rstrip()
    assert stopped.choices[0].finish_reason == "stop"
    assert complete(client, max_tokens=1).usage.completion_tokens == 1
    assert complete(client, max_tokens=1).choices[0].finish_reason == "length"
    assert complete(client, max_tokens=10**9).usage.completion_tokens <= 40
    warm = {"temperature": 1.9, "seed": 7}
    texts = [complete(client, **warm).choices[0].message.content for _ in range(2)]
    assert texts[0] == texts[1] != whole
    assert complete(client, temperature=1.9, top_p=1e-6, seed=3).choices[0].message.content == whole


def test_answers_are_as_many_as_asked_when_they_are_sampled(client):
    reply = complete(client, n=3, temperature=1.9, seed=7, logprobs=True)
    texts = [choice.message.content for choice in reply.choices]
    assert [choice.index for choice in reply.choices] == [0, 1, 2] and len(set(texts)) == 3
    assert texts == [complete(client, temperature=1.9, seed=7 + k).choices[0].message.content for k in range(3)]
    assert all(choice.logprobs.content for choice in reply.choices)
    assert reply.usage.completion_tokens == sum(len(choice.logprobs.content) for choice in reply.choices)


def test_beams_are_the_pipelines_when_they_are_asked_for(client, folder):
    pipeline = Pipeline.from_pretrained(folder, verbalizers=[])
    pipeline.verbalizers = [build_reader()]
    texts = {}
    for num_beams in (1, 2, 5):
        wanted = pipeline(draw_image(), "What is it?", max_new_tokens=8, num_beams=num_beams)
        reply = complete(client, moai={"num_beams": num_beams, "explain": True})
        texts[num_beams] = reply.choices[0].message.content
        assert texts[num_beams] == wanted.answer and reply.model_extra["moai"]["routing"]
        assert 0 < reply.usage.completion_tokens <= 8 and reply.choices[0].finish_reason in ("stop", "length")
    assert len(set(texts.values())) > 1
    stopped = complete(client, moai={"num_beams": 2}, stop=[texts[2][2:4]])
    assert stopped.choices[0].message.content == texts[2][: texts[2].index(texts[2][2:4])].rstrip()
    assert stopped.choices[0].finish_reason == "stop"


def test_extras_tell_and_change_what_the_answer_rests_on_when_asked(client):
    told = complete(client, moai={"explain": True}).model_extra["moai"]
    assert "MEAN" in told["verbalization"] and told["scenes"][0]["text_lines"]["texts"] and told["routing"]
    off = complete(client, moai={"explain": True, "verbalizers": []}).model_extra["moai"]
    assert "MEAN" not in off["verbalization"] and off["missing"]["ocr"] == "switched off by the request"
    brought = {"explain": True, "scenes": [build_scene(word="GO").to_dict()], "options": {"routing": "uniform"}}
    own = complete(client, moai=brought).model_extra["moai"]
    assert "GO" in own["verbalization"]
    assert set(own["routing"][0]["image"].values()) == {0.3333}
    pieces = list(complete(client, moai={"explain": True}, stream=True))
    assert pieces[-1].model_extra["moai"]["verbalization"] == told["verbalization"]


def test_confidence_is_told_when_answers_are_whole_streamed_or_chosen(client, app):
    threshold = app.state.engine.pipeline.answering.confidence_threshold
    whole = complete(client).model_extra["moai"]
    assert 0 < whole["confidence"] < 1 and whole["is_unsure"] == (whole["confidence"] < threshold)
    *others, last = list(complete(client, stream=True))
    assert last.model_extra["moai"] == pytest.approx(whole, abs=2e-4)
    assert all("moai" not in piece.model_extra for piece in others)
    explained = complete(client, moai={"explain": True}).model_extra["moai"]
    assert explained["confidence"] == pytest.approx(whole["confidence"], abs=2e-4)
    chosen = complete(client, moai={"options": {"choices": ["a dog", "cats"]}}).model_extra["moai"]
    assert 0.5 <= chosen["confidence"] <= 1
    several = complete(client, n=2, temperature=1.0, seed=3).model_extra["moai"]
    assert several["confidence"] == several["confidences"][0] and len(several["confidences"]) == 2
    beams = complete(client, moai={"num_beams": 3}).model_extra["moai"]
    assert 0 < beams["confidence"] < 1


def test_conversation_goes_on_when_it_has_turns_and_several_images(client):
    first = build_message("What is it?", draw_image(0), draw_image(1))
    turns = [
        {"role": "system", "content": "Be short."},
        first,
        {"role": "assistant", "content": "A dog."},
        {"role": "user", "content": "Why?"},
    ]
    told = complete(client, messages=turns, moai={"explain": True})
    assert told.choices[0].message.content and len(told.model_extra["moai"]["scenes"]) == 2
    assert "Picture 2: " in told.model_extra["moai"]["verbalization"]
    assert complete(client, messages=[{"role": "user", "content": "Hello?"}]).choices[0].message.content


def test_second_question_about_an_image_needs_no_look_when_its_scene_is_kept(client, app):
    image = draw_image(77)
    read = app.state.engine.metrics.read
    hits, looks = read("moai_scene_cache_total", result="hit"), read("moai_scene_cache_total", result="miss")
    complete(client, image)
    complete(client, encode_image(image, "BMP"), question="And now?")
    assert read("moai_scene_cache_total", result="miss") == looks + 1
    assert read("moai_scene_cache_total", result="hit") == hits + 1


def test_many_askers_get_their_own_answers_when_they_share_batches(client, app):
    questions = [f"What is it {'really ' * (n % 4)}?" for n in range(16)]
    alone = [complete(client, draw_image(n), question=questions[n]).choices[0].message.content for n in range(16)]
    together: list = [None] * 16

    def ask(n):
        pieces = complete(client, draw_image(n), question=questions[n], stream=bool(n % 2))
        if n % 2:
            together[n] = "".join(piece.choices[0].delta.content or "" for piece in pieces)
        else:
            together[n] = pieces.choices[0].message.content

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
    [thread.start() for thread in threads]
    [thread.join(120) for thread in threads]
    assert together == alone and len(set(alone)) > 8
    assert "moai_batch_size_bucket" in send(app, None, "/metrics", "GET")[1]


def test_row_is_freed_when_its_client_leaves(client, app):
    stream = complete(client, max_tokens=10_000, stream=True)
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 30
    while app.state.guard().num_running and time.monotonic() < deadline:
        time.sleep(0.05)
    assert app.state.guard().num_running == 0
    assert complete(client).choices[0].message.content


BAD = {
    "no image": (build_body("What?", b"no image at all"), 400, "expected an image"),
    "a path": (build_body("What?", "/etc/passwd"), 400, "no data URL"),
    "a file address": (build_body("What?", "file:///etc/passwd"), 400, "no data URL"),
    "an address": (build_body("What?", "http://127.0.0.1/secret.png"), 400, "--allow-media-host"),
    "no base64": (build_body("What?", "data:image/png;base64,%%%"), 400, "base64"),
    "too many pixels": (build_body("What?", draw_image(0, 1, 200_000)), 400, "at most 100000 pixels"),
    "too many images": (build_body("What?", *[draw_image()] * 9), 400, "at most 8 images"),
    "no question": (build_body("  "), 400, "with a question"),
    "a long question": (build_body("why " * 9000), 400, "tokens"),
    "a longer question": (build_body("w" * 200_000), 400, "tokens"),
    "another model": (build_body(model="gpt-4o"), 404, "the model 'tiny'"),
    "two equal answers": (build_body(n=2), 400, "temperature"),
    "many answers": (build_body(n=9, temperature=1), 400, "at most 8"),
    "no answer": (build_body(n=0), 422, "n"),
    "many beams": (build_body(moai={"num_beams": 9}), 400, "at most 8"),
    "beams that sample": (build_body(moai={"num_beams": 2}, temperature=1), 400, "without `temperature`"),
    "beams that choose": (build_body(moai={"num_beams": 2, "options": {"choices": "a,b"}}), 400, "choices"),
    "answers and beams": (build_body(n=2, temperature=1, moai={"num_beams": 2}), 400, "Leave one out"),
    "streamed beams": (build_body(moai={"num_beams": 2}, stream=True), 400, "Leave `stream` out"),
    "streamed answers": (build_body(n=2, temperature=1, stream=True), 400, "Leave `stream` out"),
    "images of a model that draws none": (build_body(moai={"options": {"images": 1}}), 400, "options"),
    "a penalty": (build_body(frequency_penalty=0.5), 422, "frequency_penalty"),
    "an unknown field": (build_body(wishes=1), 422, "wishes"),
    "a hot temperature": (build_body(temperature=9), 422, "temperature"),
    "no number": (b'{"model": "tiny", "messages": [{"role": "user", "content": "?"}], "temperature": NaN}', 422, ""),
    "no JSON": (b"{", 422, ""),
    "deep JSON": (b'{"messages": ' + b"[" * 100_000, 400, ""),
    "deep options": (
        json.dumps(build_body()).encode()[:-1] + b', "moai": {"options": {"a": ' + b"[" * 900 + b"]" * 900 + b"}}}",
        400,
        "",
    ),
    "a later system": (
        {"model": "tiny", "messages": [{"role": "user", "content": "?"}, {"role": "system", "content": "!"}]},
        400,
        "first",
    ),
    "another scene": (build_body(moai={"scenes": [build_scene(70, 90).to_dict()]}), 400, "height and width"),
    "no scene": (build_body(moai={"scenes": [{"image_size_hw": [10**6, 10**6]}]}), 400, "scene"),
    "a scene with a larger map": (
        build_body(
            moai={
                "scenes": [
                    {
                        "image_size_hw": [60, 80],
                        "segments": {
                            "panoptic_map": {"image_size_hw": [10**6, 10**6], "run_ids": [1], "run_lengths": [10**12]},
                            "ids": [1],
                            "class_names": ["sky"],
                            "confidence": [1.0],
                        },
                    }
                ]
            }
        ),
        400,
        "another size",
    ),
    "scenes too many": (build_body(moai={"scenes": [build_scene().to_dict()] * 2}), 400, "one scene per image"),
    "an unknown option": (build_body(moai={"options": {"shots": "/etc/passwd"}}), 400, "options"),
    "a wrong routing": (build_body(moai={"options": {"routing": "sideways"}}), 400, "routing"),
    "a routing of another kind": (build_body(moai={"options": {"routing": {"mode": [1]}}}), 400, ""),
    "ragged routing": (build_body(moai={"options": {"routing": [[1], [2, 3]]}}), 400, ""),
}
BAD["an image of the assistant"] = (
    {
        "model": "tiny",
        "messages": [build_message("?", draw_image()) | {"role": "assistant"}, build_message("?", draw_image())],
    },
    400,
    "user's messages",
)


@pytest.mark.parametrize("name", BAD)
def test_bad_request_is_refused_in_openais_form_when_it_is_sent(name, app):
    body, status, said = BAD[name]
    got, reply = send(app, body)
    assert (got, set(reply["error"])) == (status, {"message", "type", "param", "code"}), reply
    assert said in reply["error"]["message"]
    assert not any(secret in json.dumps(reply) for secret in ("passwd", "secret.png"))


def test_good_rows_are_answered_when_their_neighbours_are_bad(app, client):
    good = complete(client).choices[0].message.content
    replies: dict = {}
    bodies = [build_body() if n % 2 else BAD[name][0] for n, name in enumerate(list(BAD)[:8])]
    threads = [
        threading.Thread(target=lambda n=n, body=body: replies.__setitem__(n, send(app, body)))
        for n, body in enumerate(bodies)
    ]
    [thread.start() for thread in threads]
    [thread.join(60) for thread in threads]
    for n in range(len(bodies)):
        status, reply = replies[n]
        assert (status == 200 and reply["choices"][0]["message"]["content"] == good) if n % 2 else status in (400, 422)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", "/v1/chat/completions", 405), ("GET", "/v1/models/other", 404),
     ("OPTIONS", "/v1/chat/completions", 405), ("GET", "/", 404)],
)  # fmt: skip
def test_other_errors_have_openais_form_when_they_happen(app, method, path, status):
    got, reply = send(app, None, path, method)
    assert got == status and reply["error"]["message"]


def test_health_and_metrics_answer_when_asked(app):
    assert send(app, None, "/health", "GET") == (200, {"status": "alive"})
    assert send(app, None, "/ready", "GET") == (200, {"status": "ready"})
    assert 'moai_requests_total{path="/v1/chat/completions",status="200"}' in send(app, None, "/metrics", "GET")[1]


def test_long_body_is_refused_when_it_is_declared_or_comes(app):
    status, reply = send(app, b"x" * 2**21)
    assert status == 413 and "1048576 bytes" in reply["error"]["message"]
    status, reply = send(app, iter([b"x" * 2**19] * 4), Transfer_Encoding="chunked")
    assert status == 413 and reply["error"]["type"] == "invalid_request_error"


ANSWERING = [spec for spec in (*MODEL_SPECS.values(), PROMPTED) if spec.answering]


@pytest.mark.parametrize("spec", ANSWERING, ids=lambda spec: spec.answering)
def test_strangers_set_no_option_that_reads_files_or_is_unbounded_when_a_model_has_some(spec):
    answering = resolve_name(spec.answering)
    assert set(answering.served_options) <= set(answering.option_names) - {"shots", "height", "width"}
