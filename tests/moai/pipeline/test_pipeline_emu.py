"""A tiny random Emu behind the pipeline and the command: images out; see test_pipeline_interleaved.py too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from emu_builders import make_image, save_emu
from PIL import Image
from typer.testing import CliRunner

from moai import Pipeline
from moai.cli import app


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("diffusers", reason="the extra `generate` is not installed")
    return save_emu(tmp_path_factory.mktemp("pipeline"), draws=True)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline.from_pretrained(save_emu(tmp_path_factory.mktemp("writer")))


def test_shots_reach_the_prompt(writer: Pipeline) -> None:
    image = make_image(0)
    shots = ((make_image(1), "Who?", "me"), (None, "Where?", "here"))
    batch = writer.answering.encode([image], ["What?"], {}, 5, {"shots": shots})
    assert batch["pixel_values"].shape[1] == 2
    (text,) = writer.processor.batch_decode(batch["input_ids"], skip_special_tokens=True)
    assert text == "Who?meWhere?hereWhat?"


def test_videos_are_so_many_images_as_they_have_frames(writer: Pipeline) -> None:
    frames = [make_image(seed) for seed in range(20)]
    messages = [{"role": "user", "content": [{"type": "video", "video": frames}, {"type": "text", "text": "What?"}]}]
    batch = writer.processor(conversations=[messages])
    assert batch["pixel_values"].shape[:2] == (1, 8)
    assert writer.model.model.count_images(batch["input_ids"]).tolist() == [8]
    middle = writer.processor(conversations=[[{"role": "user", "content": [
        {"type": "video", "video": frames[1:]}, {"type": "text", "text": "What?"}]}]])  # fmt: skip
    assert middle["pixel_values"].shape == batch["pixel_values"].shape
    with pytest.raises(ValueError, match="list of its frames"):
        writer.processor(conversations=[[{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}]])


def test_control_tokens_in_texts_are_text(writer: Pipeline) -> None:
    config = writer.model.config
    batch = writer.answering.encode([make_image(0)], ["[IMG] <image> [/IMG]"], {}, 5)
    assert (batch["input_ids"] == config.image_start_token_id).sum() == 1
    drawing = writer.processor.encode_drawing(["a <image> of [IMG]"])
    assert (drawing["input_ids"] == config.image_start_token_id).sum() == 2  # a row's own


# ---------------------------------------------------------------------- images out


def test_texts_are_drawn_and_images_blended(pipeline: Pipeline) -> None:
    options = {"steps": 2}
    prompts = (["a red car"], [make_image(0), make_image(1)], ["like ", make_image(0), ", but blue"])
    drawn = [pipeline.draw(parts, options=options) for parts in prompts]
    assert all(answer.parts[0].size == (16, 16) and answer.answer == "" for answer in drawn)
    pixels = {answer.parts[0].tobytes() for answer in drawn}
    again = pipeline.draw("a red car", options=options).parts[0].tobytes()
    assert len(pixels) == 3 and again in pixels
    for change in ({"seed": 1}, {"guidance": 1.0}, {"steps": 3}):
        assert pipeline.draw("a red car", options=options | change).parts[0].tobytes() not in pixels
    assert pipeline.draw("a", options=options | {"height": 8, "width": 24}).parts[0].size == (24, 8)


def test_saved_pipeline_draws_the_same(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "again")
    again = Pipeline.from_pretrained(tmp_path / "again")
    first, second = (each.draw("a red car", options={"steps": 2}).parts[0] for each in (pipeline, again))
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "`steps`"),
        ({"steps": 1.5}, "`steps`"),
        ({"guidance": "nan"}, "`guidance`"),
        ({"height": 15}, "multiples of 2"),
        ({"seed": 2**70}, "`seed`"),
        ({"images": 1}, "options of drawing"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_wrong_options_are_named(pipeline: Pipeline, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline.draw("a red car", options={"steps": 2} | options)


def test_drawing_is_refused_where_nothing_is_said_or_nothing_draws(pipeline: Pipeline, writer: Pipeline) -> None:
    with pytest.raises(ValueError, match="got nothing"):
        pipeline.draw("  ")
    with pytest.raises(ValueError, match="with a visual decoder"):
        writer.draw("a red car")
    with pytest.raises(ValueError, match="draws"):
        Pipeline.from_pretrained("moai-nano", verbalizers=[]).draw("a red car")


def test_learned_prompt_is_refused_when_loaded(folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="the extra `train` is not installed")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = Pipeline.from_pretrained(folder, verbalizers=[]).model
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="Train a LoRA"):  # else it would draw as if there were none
        Pipeline.from_pretrained(tmp_path / "adapter", verbalizers=[])


def test_command_draws_and_blends(folder: Path, tmp_path: Path) -> None:
    make_image(0).save(tmp_path / "a.png")
    make_image(1).save(tmp_path / "b.png")
    common = ["--model", str(folder), "--option", "steps=2"]
    a, b, out = (str(tmp_path / name) for name in ("a.png", "b.png", "out/drawn.png"))
    for parts in (["a red car on grass"], [a, b], ["like ", a, " but blue"]):
        result = CliRunner().invoke(app, ["ask", *parts, "--image-out", out, *common])
        assert result.exit_code == 0 and result.output.strip().endswith(out), result.output
        with Image.open(out) as image:
            assert image.size == (16, 16)
    result = CliRunner().invoke(app, ["ask", a, b, "--image-out", out, *common, "--json"])
    assert json.loads(result.stdout) == {"prompt": [a, b], "image": out}


def test_command_refuses_what_would_draw_something_else(folder: Path, tmp_path: Path) -> None:
    make_image(0).save(tmp_path / "a.png")
    a, out = str(tmp_path / "a.png"), str(tmp_path / "out.png")
    for arguments, message in (
        (["ask", str(tmp_path / "b.png"), "--image-out", out], "does not exist"),
        (["ask", "a car", "--image-out", a.replace(".png", ".txt")], "--image-out"),
        (["ask", a, "--image-out", a], "itself"),
        (["ask", "--image-out", out], "got nothing"),
        (["ask", "a car", "--image-out", out, "--scene", a], "--scene"),
        (["ask", a, "What?", "--option", "images=1"], "--image-out"),
        (["ask", "a car", "--image-out", out, "--option", "choices=a,b"], "choices"),
    ):
        result = CliRunner().invoke(app, [*arguments, "--model", str(folder)])
        assert result.exit_code in (1, 2) and message in result.output, (arguments, result.output)
        assert not Path(out).exists()


def test_answers_hold_images_where_the_model_says_so(pipeline: Pipeline, folder: Path, tmp_path: Path) -> None:
    model = pipeline.model
    start, rows = model.config.image_start_token_id, model.lm_head.weight
    before = rows[start].clone()
    with pytest.MonkeyPatch.context() as patch:
        # A model that has learned to say [IMG]: it does at once.
        original = model.lm_head.forward
        patch.setattr(model.lm_head, "forward", lambda x: original(x) + 100 * (_hot(rows.shape[0], start)))
        answer = pipeline(make_image(0), "Draw.", options={"images": 2, "steps": 2}, max_new_tokens=4)
    assert [type(part) for part in answer.parts[:2]] == [Image.Image, Image.Image] and len(answer.parts) <= 3
    assert (rows[start] == before).all()
    # The command, on a model that does not say it, answers in text.
    make_image(0).save(tmp_path / "a.png")
    out = tmp_path / "out.png"
    result = CliRunner().invoke(
        app,
        ["ask", str(tmp_path / "a.png"), "What?", "--model", str(folder), "--option", "images=1", "--image-out",
         str(out), "--max-new-tokens", "2", "--json"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert out.exists() == ("images" in json.loads(result.stdout))


def _hot(size: int, place: int) -> object:
    import torch

    return torch.nn.functional.one_hot(torch.tensor(place), size).float()
