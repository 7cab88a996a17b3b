"""A tiny random Flamingo behind the pipeline and the command; see test_pipeline_interleaved.py too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from flamingo_builders import make_image, save_flamingo
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from moai import Pipeline
from moai.cli import app

ASKED = {"max_new_tokens": 5, "min_new_tokens": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_flamingo(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder)


def test_video_is_refused_by_name_in_a_conversation(pipeline: Pipeline) -> None:
    parts = [{"type": "video", "video": [make_image(0)] * 2}, {"type": "text", "text": "What?"}]
    with pytest.raises(ValueError, match="got a video"):
        pipeline.processor(conversations=[[{"role": "user", "content": parts}]])


def test_shots_change_the_prompt_when_given_with_and_without_images(pipeline: Pipeline) -> None:
    image, lengths = make_image(0), []
    pipeline.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append((kwargs["input_ids"] == module.config.image_token_id).sum().item()),
        with_kwargs=True,
    )
    for shots, images in (((make_image(1), "Who?", "me"),), 2), (((None, "Who?", "me"),), 1), ((), 1):
        lengths.clear()
        pipeline(image, "What?", options={"shots": shots, "prompt": "vqa"}, **ASKED)
        assert lengths[0] == images
    pipeline.model._forward_pre_hooks.clear()
    with pytest.raises(ValueError, match="shot 0"):
        pipeline(image, "What?", options={"shots": [("a", "b")]})
    with pytest.raises(ValueError, match="two or more"):
        pipeline(image, "What?", options={"choices": "yes"})
    with pytest.raises(ValueError, match="`prompt` must be one of"):
        pipeline(image, "What?", options={"prompt": "essay"})
    with pytest.raises(ValueError, match="shots, prompt, choices"):
        pipeline(image, "What?", options={"routing": "uniform"})


def test_stream_says_the_answer_when_pieces_come(pipeline: Pipeline) -> None:
    whole = pipeline(make_image(0), "What?", options={"prompt": "plain"}, **ASKED).answer
    stream = pipeline.stream(make_image(0), "What?", options={"prompt": "plain"}, **ASKED)
    assert "".join(stream).strip() == whole == stream.output.answer


def test_processor_of_another_model_is_refused_when_ids_differ(pipeline: Pipeline) -> None:
    pipeline.model.config.image_token_id, kept = 3, pipeline.model.config.image_token_id
    try:
        with pytest.raises(ValueError, match="Load both from one folder"):
            Pipeline(pipeline.model, pipeline.processor)
    finally:
        pipeline.model.config.image_token_id = kept


def test_missing_weights_are_named_when_the_checkpoint_is_cut(folder: Path, tmp_path: Path) -> None:
    cut = shutil.copytree(folder, tmp_path / "cut")
    tensors = load_file(cut / "model.safetensors")
    del tensors["model.resampler.latents"]
    save_file(tensors, cut / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="model.resampler.latents"):
        Pipeline.from_pretrained(cut)
    with pytest.raises(ValueError, match="--load-in-8bit"):
        Pipeline.from_pretrained(folder, load_in_8bit=True)


def _run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_command_answers_with_shots_and_choices_when_asked(folder: Path, tmp_path: Path) -> None:
    make_image(0).save(tmp_path / "a.png")
    make_image(1).save(tmp_path / "b.png")
    rows = [{"image": "b.png", "question": "Who?", "answer": "me"}, {"question": "Why?", "answer": "so"}]
    (tmp_path / "shots.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    options = ["--option", f"shots={tmp_path / 'shots.jsonl'}", "--option", "choices=yes,no"]
    result = _run("ask", tmp_path / "a.png", "Is it?", "--model", folder, "--json", *options)
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout)
    assert row["answer"] in ("yes", "no") and set(row["choices"]) == {"yes", "no"}
    (tmp_path / "shots.jsonl").write_text('{"image": "c.png", "question": "Who?", "answer": "me"}')
    result = _run("ask", tmp_path / "a.png", "Is it?", "--model", folder, *options)
    assert result.exit_code == 1 and "shots.jsonl, line 1" in result.output
