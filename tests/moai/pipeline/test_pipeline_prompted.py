"""Any image-text-to-text model behind the same pipeline and the same command, the verbalization in its prompt."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pipeline_builders import draw_image
from prompted_builders import FAMILIES, save_prompted
from typer.testing import CliRunner

from moai import Pipeline
from moai.checkpoints.io.verbalizer_settings import build_named_verbalizers
from moai.cli import app
from moai.models.quantization_choice import resolve_quantization
from verbalizers import Detections, Scene, TextLines

FAST = {"max_new_tokens": 6}
QUESTIONS = ["What is it?", "Where is the cat, and what is beside it?", "Why?"]


def build_scene(image, *texts):
    detections = Detections(np.array([[0, 0, 20, 10]]), ("cat",), np.array([0.9]), (image.height, image.width))
    quads = np.array([[[1, 1], [9, 1], [9, 5], [1, 5]]] * len(texts)).reshape(-1, 4, 2)
    return Scene(
        (image.height, image.width), detections=detections, text_lines=TextLines(quads, texts, np.ones(len(texts)))
    )


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return save_prompted(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def pipe(folder):
    return Pipeline.from_pretrained(folder, verbalizers=[])


def test_pipeline_answers_with_the_verbalization_in_the_prompt_when_a_scene_is_given(pipe):
    image = draw_image()
    with_words, without = pipe([image] * 2, QUESTIONS[:1] * 2, [build_scene(image, "STOP"), Scene((60, 80))], **FAST)
    assert '"STOP"' in with_words.auxiliary_text and "cat" in with_words.auxiliary_text
    assert without.auxiliary_text == "" and with_words.answer != without.answer


def test_pipeline_batch_equals_singles_when_questions_differ(pipe):
    image = draw_image()
    scenes = [build_scene(image, "STOP"), None, build_scene(image)]
    together = pipe([image] * 3, QUESTIONS, scenes, **FAST)
    alone = [pipe(image, question, scene, **FAST) for question, scene in zip(QUESTIONS, scenes, strict=True)]
    assert [output.answer for output in together] == [output.answer for output in alone]


def test_pipeline_streams_what_it_answers(pipe):
    stream = pipe.stream(draw_image(), QUESTIONS[0], **FAST)
    assert "".join(stream).strip() == stream.output.answer


def test_pipeline_fails_one_question_when_its_verbalization_is_too_long(folder):
    pipe = Pipeline.from_pretrained(folder, verbalizers=[])
    pipe.model.config.get_text_config().max_position_embeddings = 500
    image = draw_image()
    scenes = [build_scene(image), build_scene(image, "long " * 100), build_scene(image)]
    first, second, third = pipe([image] * 3, QUESTIONS, scenes, on_error="skip", **FAST)
    assert first.answer is not None and third.answer is not None
    assert "at most 494 tokens" in second.error and "let fewer verbalizers speak" in second.error
    with pytest.raises(ValueError, match="below 500"):
        pipe(image, QUESTIONS[0], max_new_tokens=500)


def test_pipeline_refuses_options_that_the_model_does_not_have(pipe):
    with pytest.raises(ValueError, match="options that this model has \\(style, place, choices\\), got routing"):
        pipe(draw_image(), QUESTIONS[0], options={"routing": "uniform"}, **FAST)
    with pytest.raises(ValueError, match="`style` must be one of"):
        pipe(draw_image(), QUESTIONS[0], options={"style": "poem"}, **FAST)


def test_pipeline_writes_the_prompt_as_options_say(pipe, monkeypatch):
    seen = []
    encode = pipe.answering.encode
    monkeypatch.setattr(pipe.answering, "encode", lambda *inputs: seen.append(encode(*inputs)) or seen[-1])
    image = draw_image()
    options = {"style": "compact", "place": "before"}
    output = pipe(image, QUESTIONS[0], build_scene(image, "STOP"), options=options, **FAST)
    assert output.auxiliary_text.splitlines() == [
        "objects: 1 cat", "boxes: cat 0.00 0.00 0.25 0.17", 'text: "STOP"'
    ]  # fmt: skip
    prompt = pipe.answering.tokenizer.decode(seen[0]["input_ids"][0])
    assert "user\nComputer vision models" in prompt and prompt.index("STOP") < prompt.index(QUESTIONS[0])


def test_pipeline_answers_the_same_when_saved_and_loaded(pipe, tmp_path):
    image = draw_image()
    scene = build_scene(image, "STOP")
    pipe.save_pretrained(tmp_path / "saved")
    again = Pipeline.from_pretrained(tmp_path / "saved")
    assert again.verbalizers == [] and again(image, QUESTIONS[0], scene, **FAST).answer == (
        pipe(image, QUESTIONS[0], scene, **FAST).answer
    )
    weights = zip(again.model.state_dict().values(), pipe.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)


def test_ask_takes_the_model_by_its_folder(folder, tmp_path):
    image = draw_image()
    image.save(tmp_path / "a.png")
    (tmp_path / "scene.json").write_text(json.dumps(build_scene(image, "STOP").to_dict()))
    words = [str(tmp_path / "a.png"), "What?", "--model", folder, "--scene", str(tmp_path / "scene.json")]
    result = CliRunner().invoke(
        app, ["ask", *words, "--verbalizers", "none", "--max-new-tokens", "4", "--json"], catch_exceptions=False
    )
    row = json.loads(result.stdout)
    assert result.exit_code == 0 and '"STOP"' in row["auxiliary_text"] and isinstance(row["answer"], str)


def test_named_verbalizers_are_the_published_ones_when_the_model_names_none():
    built = build_named_verbalizers(["published"])
    assert [(v.kind, v.backend) for v in built] == [
        ("segmentation", "transformers"), ("detection", "owlv2"), ("scene_graph", "geometric"), ("ocr", "rapidocr")
    ]  # fmt: skip
    (segmenter,) = build_named_verbalizers("segmentation")
    assert segmenter.checkpoint == built[0].checkpoint == "facebook/mask2former-swin-base-coco-panoptic"


def test_named_verbalizers_are_a_bundled_checkpoints_when_it_is_named():
    built = build_named_verbalizers(["moai-nano"])
    assert [v.kind for v in built] == ["segmentation", "detection", "scene_graph", "ocr"]
    assert all(Path(v.drawing["checkpoint"]).is_dir() for v in built[:3])


def test_pipeline_loads_in_few_bits_when_asked(tmp_path):
    pytest.importorskip("bitsandbytes", reason='needs bitsandbytes: pip install "moai-vlm[quantization]"')
    folder = save_prompted(tmp_path, "llava")
    pipeline = Pipeline.from_pretrained(folder, verbalizers=[], load_in_8bit=True)
    linear = pipeline.answering.model.get_decoder().layers[0].self_attn.q_proj
    assert linear.weight.dtype == torch.int8
    assert isinstance(pipeline(draw_image(), "What?", max_new_tokens=2).answer, str)
    chosen = resolve_quantization({"load_in_4bit": True, "load_in_8bit": False, "dtype": torch.float16})
    assert chosen["quantization_config"].bnb_4bit_quant_type == "nf4"
    assert chosen["quantization_config"].bnb_4bit_compute_dtype == torch.float16
    with pytest.raises(ValueError, match="got both"):
        Pipeline.from_pretrained(folder, verbalizers=[], load_in_8bit=True, load_in_4bit=True)
