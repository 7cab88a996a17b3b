"""A tiny random Prismer behind the pipeline and the command line; conversion from the original's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_builders import build_scene, draw_image
from prismer_builders import build_name_encoder, build_prismer, publish, save_prismer, save_published
from typer.testing import CliRunner

from moai import Pipeline
from moai.checkpoints.convert import convert
from moai.cli.app import app
from moai.models.prismer.configuration_prismer import EXPERTS, IMAGE_SIZES, PrismerConfig
from moai.models.prismer.convert import build_config
from moai.models.prismer.modeling_prismer import PrismerForConditionalGeneration

HEADS = {"num_vision_heads": 2, "num_text_heads": 3}


@pytest.fixture(scope="module", params=[EXPERTS, ()], ids=["prismer", "prismerz"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_prismer(tmp_path_factory.mktemp("prismer"), request.param)


def ask(folder: Path, *args: Any, **kwargs: Any) -> Any:
    return Pipeline.from_pretrained(folder, verbalizers=[])(*args, max_new_tokens=8, **kwargs)


def test_pipeline_answers_a_batch_as_singles_when_scenes_are_given(folder: Path, tmp_path: Path) -> None:
    pipeline = Pipeline.from_pretrained(folder, verbalizers=[])
    images = [draw_image(seed) for seed in range(3)]
    questions, scenes = ["What is it?", "Is there a dog on the grass?", "Why"], [build_scene(), None, build_scene()]
    for options in ({}, {"task": "caption"}, {"choices": "yes,no,a dog"}):
        together = pipeline(images, questions, scenes=scenes, options=options, max_new_tokens=8)
        for row, answer in enumerate(together):
            alone = pipeline(images[row], questions[row], scenes[row], options=options, max_new_tokens=8)
            assert answer.answer == alone.answer
    pipeline.save_pretrained(tmp_path / "saved")
    again = ask(tmp_path / "saved", images, questions, scenes=scenes)
    assert [a.answer for a in again] == [a.answer for a in ask(folder, images, questions, scenes=scenes)]


def test_pipeline_refuses_few_bits_by_name_when_asked(folder: Path) -> None:
    with pytest.raises(ValueError, match="--load-in-4bit"):
        Pipeline.from_pretrained(folder, load_in_4bit=True)


def test_scene_changes_the_answer_only_when_the_model_has_experts(folder: Path) -> None:
    pipeline = Pipeline.from_pretrained(folder, verbalizers=[])
    options = {"choices": ["yes", "no", "two", "red"]}
    reports = [
        pipeline(draw_image(), "What?", scene, options=options, is_reporting=True).report["choices"]
        for scene in (None, build_scene())
    ]
    assert (reports[0] == reports[1]) is (not pipeline.model.config.experts)


def test_answers_are_ranked_and_reported_when_given(folder: Path) -> None:
    answer = ask(folder, draw_image(), "Yes or no?", options={"choices": "yes,no"}, is_reporting=True)
    scores = answer.report["choices"]
    assert scores.keys() == {"yes", "no"} and answer.answer == max(scores, key=scores.get)
    assert answer.to_dict()["choices"] == scores
    for options, complaint in (
        ({"choices": "yes"}, "two or more"),
        ({"task": "draw"}, "task"),
        ({"style": 1}, "style"),
    ):
        with pytest.raises(ValueError, match=complaint):
            ask(folder, draw_image(), "Yes or no?", options=options)


def test_stream_says_what_the_whole_answer_says_when_there_are_beams(folder: Path) -> None:
    pipeline = Pipeline.from_pretrained(folder, verbalizers=[])
    for settings in ({}, {"num_beams": 1}, {"options": {"task": "caption"}}, {"options": {"choices": "yes,no"}}):
        stream = pipeline.stream(draw_image(), "What is it?", build_scene(), max_new_tokens=8, **settings)
        said = "".join(stream)
        whole = pipeline(draw_image(), "What is it?", build_scene(), max_new_tokens=8, **settings).answer
        assert said.strip() == whole == stream.output.answer


def test_captions_are_sentences_of_some_length_when_asked_for(folder: Path) -> None:
    pipeline = Pipeline.from_pretrained(folder, verbalizers=[])
    head = pipeline.model.lm_head
    with torch.no_grad():
        head.bias[2] += 50  # wants to end at once
    options, images = {"task": "caption"}, [draw_image(0), draw_image(1)]
    together = pipeline(images, ["A", "A big red"], options=options, max_new_tokens=30)
    alone = [
        pipeline(image, text, options=options, max_new_tokens=30)
        for image, text in zip(images, ("A", "A big red"), strict=True)
    ]
    assert [caption.answer for caption in together] == [caption.answer for caption in alone]
    assert len(together[0].answer) > 1 and together[0].answer.endswith(".")


def test_too_long_is_refused_by_numbers_when_asked(folder: Path) -> None:
    with pytest.raises(ValueError, match="below 256"):
        Pipeline.from_pretrained(folder, verbalizers=[])(draw_image(), "What?", max_new_tokens=256)
    with pytest.raises(ValueError, match="load_in_4bit"):
        Pipeline.from_pretrained(folder, verbalizers=[], load_in_4bit=True)
    assert len(Pipeline.from_pretrained(folder, verbalizers=[])(draw_image(), "What?", max_new_tokens=1).answer) < 2
    with pytest.raises(ValueError, match="at most 248 tokens"):
        ask(folder, draw_image(), "what " * 100)


def test_command_line_answers_when_given_a_scene(folder: Path, tmp_path: Path) -> None:
    draw_image().save(tmp_path / "image.png")
    (tmp_path / "scene.json").write_text(json.dumps(build_scene().to_dict()))
    arguments = ["ask", str(tmp_path / "image.png"), "What is it?", "--model", str(folder), "--max-new-tokens", "8"]
    arguments += ["--scene", str(tmp_path / "scene.json"), "--verbalizers", "none", "--json"]
    result = CliRunner().invoke(app, [*arguments, "--option", "choices=yes,no"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["answer"] in ("yes", "no")
    result = CliRunner().invoke(app, [*arguments, "--option", "choices=yes"])
    assert result.exit_code == 1 and "two or more" in result.output


def test_foreign_processor_is_refused_when_joined() -> None:
    model, _ = build_prismer()
    _, processor = build_prismer(())
    with pytest.raises(ValueError, match="experts"):
        Pipeline(model, processor)


# ---------------------------------------------------------------------- conversion


@pytest.mark.parametrize("is_safetensors", [False, True])
@pytest.mark.parametrize("experts", [EXPERTS, ("seg", "edge"), ()])
def test_converted_checkpoint_equals_its_source_when_published(
    experts: tuple[str, ...], is_safetensors: bool, tmp_path: Path
) -> None:
    model, processor = build_prismer(experts, label_smoothing=0.1)
    source = save_published(tmp_path / "release", model, is_safetensors)
    build_name_encoder().save_pretrained(tmp_path / "clip")
    encoder = {"label_encoder": tmp_path / "clip"} if experts else {}
    given = source / "pytorch_model.bin" if not experts and not is_safetensors else source  # the file or its folder
    report = convert(given, tmp_path / "out", **HEADS, **encoder)
    assert report.kind == "prismer" and report.num_source_tensors == len(publish(model))
    assert any("NSCL" in note for note in report.notes) and "NSCL" in (tmp_path / "out" / "README.md").read_text()
    loaded = PrismerForConditionalGeneration.from_pretrained(tmp_path / "out")
    state, wanted = loaded.state_dict(), model.state_dict()
    assert state.keys() == wanted.keys() and all(torch.equal(state[name], wanted[name]) for name in wanted)
    for name in ("experts", "num_latents", "resampler_layers", "label_size"):
        if experts or name == "experts":
            assert getattr(loaded.config, name) == getattr(model.config, name)
    answer = ask(tmp_path / "out", draw_image(), "What is it?", build_scene())
    assert isinstance(answer.answer, str)
    settings = json.loads((tmp_path / "out" / "verbalizers.json").read_text())
    assert ("segmentation" in settings["kinds"]) is ("seg" in experts)


def test_conversion_names_what_is_wrong_when_keys_do_not_fit(tmp_path: Path) -> None:
    model, _ = build_prismer()
    tensors = publish(model)
    cases: list[tuple[dict[str, torch.Tensor], str]] = [
        (tensors | {"expert_encoder.nose": torch.zeros(1)}, "unknown source key.*expert_encoder.nose"),
        ({k: t for k, t in tensors.items() if k != "expert_encoder.ln_post.bias"}, "post_layernorm.bias"),
        (tensors | {"expert_encoder.ln_post.bias": torch.zeros(3)}, r"expert_encoder.ln_post.bias: \(3,\) for"),
        (
            tensors | {"text_decoder.lm_head.decoder.bias": torch.ones(len(tensors["text_decoder.lm_head.bias"]))},
            "tied",
        ),
    ]
    for number, (wrong, complaint) in enumerate(cases):
        source = save_published(tmp_path / f"release{number}", model)
        torch.save(wrong, source / "pytorch_model.bin")
        with pytest.raises(ValueError, match=complaint):
            convert(source, tmp_path / "out", **HEADS)
        assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="num_vision_heads"):
        convert(source, tmp_path / "out")


def test_labels_are_refused_with_a_next_step_when_converted_without_their_encoder(tmp_path: Path) -> None:
    source = save_published(tmp_path / "release", build_prismer()[0])
    report = convert(source, tmp_path / "out", **HEADS)
    assert any("--label-encoder" in note for note in report.notes)
    with pytest.raises(ValueError, match="label_features"):
        ask(tmp_path / "out", draw_image(), "What is it?")
    with pytest.raises(ValueError, match="CLIP"):
        convert(source, tmp_path / "other", label_encoder=tmp_path, **HEADS)
    blind = save_published(tmp_path / "blind", build_prismer(())[0])
    with pytest.raises(ValueError, match="label-encoder"):
        convert(blind, tmp_path / "other", label_encoder=tmp_path, **HEADS)


@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize("experts", [EXPERTS, ()])
def test_sizes_of_the_published_models_are_read_off_shapes(size: str, experts: tuple[str, ...]) -> None:
    for image_size in IMAGE_SIZES:
        config = PrismerConfig.from_preset(size, experts, image_size)
        with torch.device("meta"):
            model = PrismerForConditionalGeneration(config)
        read = build_config({key: tuple(tensor.shape) for key, tensor in publish(model).items()})
        assert read.to_diff_dict() == config.to_diff_dict()
