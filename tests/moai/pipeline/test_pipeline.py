"""Pipeline: lists equal singles, scenes are reused, what fails is named and costs nothing else."""

import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_builders import (
    HangingVerbalizer,
    ScriptedVerbalizer,
    build_scene,
    build_text_lines,
    draw_image,
    write_tiny_checkpoint,
)

from moai import Answer, Pipeline
from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from moai.pipeline.answers import PipelineError
from moai.pipeline.queries import pair_queries
from moai.processing.control_tokens import ControlTokenGuard

FAST = {"max_new_tokens": 6}
QUESTIONS = ["What is it?", "How many dogs are there?", "Where is the cat? There are two. It is on the left."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def read_brightness(image: np.ndarray):
    """Another word for every image, so that findings handed to the wrong image are noticed."""
    return build_text_lines(f"SIGN {int(image.astype(np.int64).sum()) % 9973}")


@pytest.fixture
def reader():
    return ScriptedVerbalizer("ocr", read_brightness)


@pytest.fixture
def pipe(folder, reader):
    return Pipeline.from_pretrained(folder, verbalizers=[reader])


def fields_of(output: Answer) -> tuple:
    return output.answer, output.auxiliary_text, output.scene, dict(output.missing)


def test_pipeline_answers_one_output_when_asked_one_question(pipe):
    output = pipe(draw_image(), "What is it?", **FAST)
    assert isinstance(output, Answer)
    assert output.answer and output.error is None and not output.report
    assert output.auxiliary_text.startswith('The image includes text descriptions: "SIGN')
    assert output.scene.text_lines.texts[0] in output.auxiliary_text


def test_pipeline_list_equals_singles_when_scenes_and_lengths_differ(pipe):
    images = [draw_image(seed) for seed in range(3)]
    scenes = [None, build_scene(), None]
    together = pipe(images, QUESTIONS, scenes, is_reporting=True, **FAST)
    alone = [pipe(p, q, s, is_reporting=True, **FAST) for p, q, s in zip(images, QUESTIONS, scenes, strict=True)]
    assert [fields_of(output) for output in together] == [fields_of(output) for output in alone]
    assert len({output.answer for output in together}) > 1
    for one, other in zip(together, alone, strict=True):
        for layer, expected in zip(one.report["routing"], other.report["routing"], strict=True):
            torch.testing.assert_close(layer.image, expected.image, atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(layer.language, expected.language, atol=1e-4, rtol=1e-3)


def test_pipeline_gives_the_same_answers_when_the_batch_is_smaller(pipe):
    images = [draw_image(seed) for seed in range(3)]
    large, small = (pipe(images, QUESTIONS, batch_size=size, **FAST) for size in (3, 2))
    assert [fields_of(output) for output in large] == [fields_of(output) for output in small]


def test_pipeline_uses_the_findings_when_they_differ(pipe):
    answers = {word: pipe(draw_image(), "What is it?", build_scene(word=word), **FAST) for word in ("STOP", "dog cat")}
    assert answers["STOP"].auxiliary_text != answers["dog cat"].auxiliary_text
    states = [
        pipe.processor(auxiliary_text=output.auxiliary_text)["auxiliary_input_ids"] for output in answers.values()
    ]
    first, second = (pipe.model.get_auxiliary_states(ids) for ids in states)
    assert (first - second).abs().max() > 1e-3


def test_pipeline_looks_once_when_one_image_has_many_questions(pipe, reader):
    outputs = pipe(draw_image(), QUESTIONS, batch_size=1, **FAST)
    assert len(outputs) == 3 and reader.num_images == 1


def test_pipeline_looks_once_when_a_path_is_repeated(pipe, reader, tmp_path):
    draw_image().save(tmp_path / "a.png")
    pipe([tmp_path / "a.png", str(tmp_path / "a.png"), tmp_path / "a.png"], "What is it?", **FAST)
    assert reader.num_images == 1


class OneWay(io.RawIOBase):
    """A file object that cannot go back, and gives a few bytes at a time, as a pipe or a download does."""

    def __init__(self, data: bytes) -> None:
        self.rest = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        return self.rest.readinto(memoryview(buffer)[:100])


def encode(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("wrap", [io.BytesIO, OneWay, bytearray, memoryview, lambda data: Image.open(io.BytesIO(data))])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_pipeline_reads_an_image_once_when_it_comes_from_a_stream(pipe, reader, wrap, batch_size):
    expected = [fields_of(output) for output in pipe(draw_image(), QUESTIONS, **FAST)]
    image, num_before = wrap(encode(draw_image())), reader.num_images
    outputs = pipe(image, QUESTIONS, batch_size=batch_size, **FAST)
    assert [fields_of(output) for output in outputs] == expected
    image = wrap(encode(draw_image())) if wrap is OneWay else image  # the others can be used again
    outputs = pipe([image] * 3, QUESTIONS, batch_size=batch_size, **FAST)
    assert [fields_of(output) for output in outputs] == expected
    assert reader.num_images == num_before + 2


def test_pipeline_reads_streams_everywhere_when_they_can_be_read_but_once(pipe):
    data, expected = encode(draw_image()), pipe(draw_image(), "What is it?", **FAST)
    assert pipe.verbalize(OneWay(data)) == expected.scene
    assert pipe.verbalize([OneWay(data)]) == [expected.scene]
    stream = pipe.stream(OneWay(data), "What is it?", **FAST)
    assert "".join(stream).strip() == expected.answer
    one = OneWay(data)
    pixels = pipe.processor(images=[one, one], questions=["What?", "Where?"], padding=True)["pixel_values"]
    assert (pixels[0] == pixels[1]).all()
    closed = io.BytesIO(data)
    closed.close()
    outputs = pipe([draw_image(), closed], "What is it?", on_error="skip", **FAST)
    assert fields_of(outputs[0]) == fields_of(expected) and "closed file" in outputs[1].error


def test_pipeline_takes_generators_when_they_give_images_or_questions(pipe):
    images = [draw_image(seed) for seed in range(3)]
    expected = [fields_of(output) for output in pipe(images, QUESTIONS, **FAST)]
    outputs = pipe((image for image in images), (question for question in QUESTIONS), **FAST)
    assert [fields_of(output) for output in outputs] == expected
    assert [scene.text_lines.texts for scene in pipe.verbalize(iter(images))] == [
        row[2].text_lines.texts for row in expected
    ]
    assert len(pipe(iter(images[:1]), "What is it?", **FAST)) == 1
    stack = np.stack([np.asarray(image) for image in images])
    assert [fields_of(output) for output in pipe(stack, QUESTIONS, **FAST)] == expected
    inputs = pipe.processor(images=iter(images), questions=iter(QUESTIONS), padding=True, return_tensors="pt")
    assert inputs["input_ids"].shape[0] == 3


def test_pipeline_looks_again_when_an_image_changes_between_its_questions(pipe, reader, tmp_path):
    array, path = np.array(draw_image(0)), tmp_path / "a.png"
    draw_image(0).save(path)
    scenes = pipe.verbalize([draw_image(0), draw_image(1)])
    answers = [pipe.answer_each([image, image], "What is it?", batch_size=1, **FAST) for image in (array, path)]
    assert [next(each).scene for each in answers] == [scenes[0]] * 2
    array[:] = np.asarray(draw_image(1))
    draw_image(1).save(path)
    assert [next(each).scene for each in answers] == [scenes[1]] * 2


def test_pipeline_does_not_look_when_scenes_are_given(pipe, reader):
    image = draw_image()
    scene = pipe.verbalize(image)
    assert reader.num_images == 1
    again = [pipe(image, question, scene, **FAST) for question in QUESTIONS]
    assert reader.num_images == 1
    assert all(output.scene is scene for output in again)


def test_pipeline_keeps_two_scenes_apart_when_the_image_is_the_same(pipe):
    image, scenes = draw_image(), [build_scene(word="STOP"), build_scene(word="OPEN")]
    outputs = pipe([image, image], "What is it?", scenes, **FAST)
    assert [output.scene.text_lines.texts for output in outputs] == [("STOP",), ("OPEN",)]


def test_verbalize_fills_only_gaps_when_findings_are_brought(folder):
    reader = ScriptedVerbalizer("ocr", read_brightness)
    mapper = ScriptedVerbalizer("weather", lambda image: "The sky is grey.")
    pipe = Pipeline.from_pretrained(folder, verbalizers=[reader, mapper])
    scene = pipe.verbalize(draw_image(), build_scene())
    assert (reader.num_images, mapper.num_images) == (0, 1)
    assert scene.text_lines.texts == ("STOP",) and scene.findings == {"weather": "The sky is grey."}
    assert pipe.describe(scene).endswith("The sky is grey.")


def test_pipeline_names_what_is_missing_when_a_verbalizer_raises(folder):
    def fail(image):
        raise RuntimeError("no memory left")

    pipe = Pipeline.from_pretrained(folder, verbalizers=[ScriptedVerbalizer("ocr", fail)])
    output = pipe(draw_image(), "What is it?", **FAST)
    assert output.answer
    assert "no memory left" in output.missing["ocr"]
    assert set(output.missing) == {"segmentation", "detection", "scene_graph", "ocr"}


def test_pipeline_answers_when_a_verbalizer_hangs(folder):
    hanging = HangingVerbalizer()
    pipe = Pipeline.from_pretrained(folder, verbalizers=[hanging])
    try:
        output = pipe(draw_image(), "What is it?", timeout_s=0.2, **FAST)
    finally:
        hanging.release()
    assert output.answer and "0.2 s" in output.missing["ocr"]


def test_pipeline_keeps_other_findings_when_one_image_breaks_a_verbalizer(folder):
    bad = draw_image(1)

    def fail_on_bad(image):
        if np.array_equal(image, np.asarray(bad)):
            raise RuntimeError("cannot read this one")
        return build_text_lines("FINE")

    pipe = Pipeline.from_pretrained(folder, verbalizers=[ScriptedVerbalizer("ocr", fail_on_bad)])
    outputs = pipe([draw_image(0), bad, draw_image(2)], "What is it?", **FAST)
    assert ["ocr" in output.missing for output in outputs] == [False, True, False]
    assert all(output.answer for output in outputs)


def test_pipeline_error_names_the_image_and_keeps_answers_when_one_is_bad(pipe, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = [draw_image(0), draw_image(1), tmp_path / "broken.png", draw_image(2)]
    with pytest.raises(PipelineError, match=r"item 2 \(.*broken\.png\)") as caught:
        pipe(images, "What is it?", batch_size=2, **FAST)
    assert caught.value.index == 2
    assert [output.answer for output in caught.value.outputs] == [
        output.answer for output in pipe(images[:2], "What is it?", **FAST)
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_pipeline_keeps_the_others_when_bad_ones_are_skipped(pipe, tmp_path, batch_size):
    (tmp_path / "broken.png").write_bytes(b"")
    images = [draw_image(0), tmp_path / "broken.png", draw_image(2), draw_image(3)]
    questions = ["What is it?", "What is it?", "  ", "Where is the cat?"]
    outputs = pipe(images, questions, on_error="skip", batch_size=batch_size, **FAST)
    assert [output.error is None for output in outputs] == [True, False, False, True]
    assert "broken.png" in outputs[1].error and "item 2" in outputs[2].error
    good = [pipe(images[i], questions[i], **FAST).answer for i in (0, 3)]
    assert [outputs[0].answer, outputs[3].answer] == good


def test_stream_pieces_join_to_the_answer_when_read_to_the_end(pipe):
    image = draw_image()
    stream = pipe.stream(image, "What is it?", **FAST)
    pieces = list(stream)
    assert "".join(pieces).strip() == stream.output.answer == pipe(image, "What is it?", **FAST).answer


def test_stream_raises_in_the_reader_when_the_question_is_empty(pipe):
    with pytest.raises(PipelineError, match="expected a question"):
        list(pipe.stream(draw_image(), ""))


def test_stream_stops_generating_when_closed(pipe):
    stream = pipe.stream(draw_image(), "What is it?", max_new_tokens=400, eos_token_id=-1)
    next(stream)
    stream.close()
    assert stream.output is not None  # the worker has ended
    assert len(pipe.processor.tokenizer.encode(stream.output.answer)) < 400


def test_prompt_is_tokenized_once_when_a_question_is_answered(pipe, monkeypatch):
    encoded = []
    encode = ControlTokenGuard.encode
    monkeypatch.setattr(ControlTokenGuard, "encode", lambda guard, text: encoded.append(text) or encode(guard, text))
    output = pipe(draw_image(), "How many lamps?", **FAST)
    (prompt,) = pipe.processor.build_prompts("How many lamps?")
    assert encoded.count(prompt) == 1
    assert output.auxiliary_text and encoded.count(output.auxiliary_text) == 1


def test_stages_answer_as_the_pipeline_does_when_called_one_by_one(pipe):
    queries = pair_queries([draw_image(), b"no image"], "What is it?")
    pipe.prepare_queries(queries)
    assert queries[1].error.startswith("item 1") and queries[0].error is None
    pipe.verbalize_queries(queries[:1])
    answers = pipe.generate_answers(queries[:1], **FAST)
    assert answers[0].answer == pipe(draw_image(), "What is it?", **FAST).answer
    assert answers[0].scene is queries[0].scenes[0]


def test_routing_shares_sum_to_one_when_asked_for(pipe):
    output = pipe(draw_image(), "What is it?", is_reporting=True, **FAST)
    layers = pipe.model.config.mixer_config.layers
    assert [layer.layer_idx for layer in output.report["routing"]] == list(layers)
    for layer in output.report["routing"]:
        assert layer.image.shape == (pipe.model.config.num_image_tokens, 3)
        for stream in (layer.image, layer.language):
            torch.testing.assert_close(stream.sum(-1), torch.ones(len(stream)))
    shares = output.to_dict()["routing"][0]
    assert set(shares["image"]) == {"auxiliary", "language", "image"}


def test_routing_weights_go_to_their_question_when_given_per_question(pipe):
    image, num_layers = draw_image(), len(pipe.model.config.mixer_config.layers)
    weights = torch.eye(3)[:, None, None].expand(3, num_layers, 2, 3)
    outputs = pipe(image, QUESTIONS, options={"routing": weights}, is_reporting=True, batch_size=2, **FAST)
    for index, output in enumerate(outputs):
        assert torch.equal(output.report["routing"][0].image[0], torch.eye(3)[index])
    with pytest.raises(ValueError, match="each of the 3 questions"):
        pipe(image, QUESTIONS, options={"routing": weights[:2]}, **FAST)


def test_routing_rows_are_their_samples_when_searching_with_beams(pipe):
    images = [draw_image(seed) for seed in range(2)]
    beams = pipe(images, QUESTIONS[:2], is_reporting=True, num_beams=3, **FAST)
    greedy = pipe(images, QUESTIONS[:2], is_reporting=True, **FAST)
    for one, other in zip(beams, greedy, strict=True):
        torch.testing.assert_close(
            one.report["routing"][0].language, other.report["routing"][0].language, atol=1e-5, rtol=1e-4
        )


def test_pipeline_restores_itself_when_saved(pipe, tmp_path):
    pipe.settings = VerbalizerSettings(kinds=("ocr",), map="always")
    pipe.verbalizers = []
    pipe.save_pretrained(tmp_path / "copy")
    copy = Pipeline.from_pretrained(tmp_path / "copy")
    assert copy.verbalizers == [] and copy.settings.map == "always" and copy.settings.kinds == ("ocr",)
    image, scene = draw_image(), build_scene()
    assert copy(image, "What is it?", scene, **FAST).answer == pipe(image, "What is it?", scene, **FAST).answer


def test_map_settings_decide_what_the_model_sees_when_there_are_segments(pipe, monkeypatch):
    seen = []
    original = pipe.answering.generate
    monkeypatch.setattr(
        pipe.answering,
        "generate",
        lambda inputs, *rest, **given: (
            seen.append("auxiliary_pixel_values" in inputs) or original(inputs, *rest, **given)
        ),
    )
    for mode in ("found", "always", "never"):
        pipe.settings = VerbalizerSettings(map=mode)
        pipe(draw_image(), "What is it?", build_scene(), **FAST)
        pipe(draw_image(), "What is it?", **FAST)
    assert seen == [True, False, True, True, False, False]


@pytest.mark.parametrize(
    ("images", "questions", "scenes", "message"),
    [
        ([], "What?", None, "got 0 and 1"),
        (["a", "b"], ["x", "y", "z"], None, "got 2 images and 3 questions"),
        (["a", "b"], "x", [None], "one scene per image"),
    ],
)
def test_pipeline_names_both_counts_when_they_do_not_fit(pipe, images, questions, scenes, message):
    with pytest.raises(ValueError, match=message):
        pipe(images, questions, scenes)


def test_pipeline_refuses_a_scene_when_it_is_another_images(pipe):
    with pytest.raises(PipelineError, match=r"\(60, 80\).*\(30, 40\)"):
        pipe(draw_image(), "What is it?", build_scene(30, 40))


def test_from_pretrained_says_what_it_takes_when_the_name_is_unknown():
    with pytest.raises(ValueError, match="checkpoint folder, a hub name .* or a bundled name"):
        Pipeline.from_pretrained("no-such-model")


def test_from_pretrained_refuses_when_weights_are_missing(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    dropped = next(name for name in weights if "compressor" in name)
    del weights[dropped]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="expected all weights"):
        Pipeline.from_pretrained(tmp_path, verbalizers=[])


def test_from_pretrained_names_the_kind_when_its_package_is_missing(folder, monkeypatch):
    monkeypatch.setattr("moai.checkpoints.io.verbalizer_settings.is_rapidocr_available", lambda: False)
    output = Pipeline.from_pretrained(folder)(draw_image(), "What is it?", **FAST)
    assert output.answer and 'pip install "moai-vlm[ocr]"' in output.missing["ocr"]


def test_verbalizer_settings_survive_when_saved_and_loaded(tmp_path):
    entries = ({"kind": "ocr", "backend": "rapidocr", "settings": {"threshold": 0.5}},)
    settings = VerbalizerSettings(entries, ("ocr",), map="never", compat=True)
    settings.save(tmp_path)
    assert VerbalizerSettings.load(tmp_path) == settings
    built, absent = settings.build()
    assert built[0].threshold == 0.5 and not absent


@pytest.mark.parametrize("content", ['{"kindz": []}', "[1]", "{", '{"map": "often"}', '{"words": {"x": 1}}'])
def test_verbalizer_settings_name_the_file_when_it_is_wrong(tmp_path, content):
    (tmp_path / "verbalizers.json").write_text(content)
    with pytest.raises(ValueError, match=r"verbalizers\.json is no valid"):
        VerbalizerSettings.load(tmp_path)


def test_transformers_pipeline_answers_when_moai_is_imported(folder):
    from transformers import pipeline

    pipe = pipeline("image-text-to-text", model=str(folder))

    def chat(seed, question):
        content = [{"type": "image", "image": draw_image(seed)}, {"type": "text", "text": question}]
        return [{"role": "user", "content": content}]

    chats = [chat(0, "What is it?"), chat(1, "How many dogs are there on the left? There are two.")]
    settings = {"max_new_tokens": 5, "return_full_text": False}
    singles = [pipe(text=one, **settings)[0]["generated_text"] for one in chats]
    together = [rows[0]["generated_text"] for rows in pipe(text=chats, batch_size=2, **settings)]
    assert together == singles and all(singles)

    ours = Pipeline.from_pretrained(folder, verbalizers=[])
    inputs = ours.processor(images=draw_image(0), questions="What is it?")
    ids = ours.model.generate(**inputs, max_new_tokens=5)[:, inputs["input_ids"].shape[1] :]
    assert ours.processor.batch_decode(ids, skip_special_tokens=True) == singles[:1]


def test_registration_puts_the_class_into_the_static_table_when_moai_is_imported():
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as names

    assert names["moai"] == "MoAIForConditionalGeneration"
