"""`moai inspect`: one page about one answer, of any model."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch
from flamingo_builders import save_flamingo
from pipeline_builders import build_scene, draw_image
from prismer_builders import save_prismer
from prompted_builders import save_prompted
from training_builders import write_tiny_checkpoint
from typer.testing import CliRunner

from moai import Pipeline
from moai.cli import app
from moai.evaluation.inspecting import inspect_answer

MODELS = {
    "moai": write_tiny_checkpoint,
    "llava": lambda folder: save_prompted(folder, "llava"),
    "qwen2_vl": lambda folder: save_prompted(folder, "qwen2_vl"),
    "flamingo": save_flamingo,
    "prismer": save_prismer,
}


class _Addresses(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href")]


@pytest.mark.parametrize("name", MODELS)
def test_page_shows_layers_words_and_probabilities_without_addresses_when_any_model_is_inspected(name, tmp_path):
    folder, image = MODELS[name](tmp_path / "model"), draw_image(0)
    image.save(tmp_path / "a.png")
    (tmp_path / "scene.json").write_text(json.dumps(build_scene().to_dict()), encoding="utf-8")
    words = ["inspect", str(tmp_path / "a.png"), "What <b>is</b> it?", "--model", str(folder), "--verbalizers", "none"]
    words += ["--scene", str(tmp_path / "scene.json"), "--out", str(tmp_path / "page.html"), "--max-new-tokens", "4"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output + result.stderr
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "What &lt;b&gt;is&lt;/b&gt; it?" in page and 'data-layer="segmentation"' in page
    assert all(address.startswith("data:image/png;base64,") for address in _Addresses(page).found)
    assert "How sure each token was" in page and ("Who was listened to" in page) == (name == "moai")


def test_page_that_would_look_like_an_image_is_refused_before_anything_is_loaded(tmp_path):
    result = CliRunner().invoke(
        app, ["inspect", "a.png", "What?", "--model", "nowhere", "--out", str(tmp_path / "x.png")]
    )
    assert result.exit_code == 1 and "expected a page's name for --out" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return Pipeline.from_pretrained(write_tiny_checkpoint(tmp_path_factory.mktemp("tiny")), [])


def test_tokens_have_the_probabilities_of_the_model_when_reported(pipeline):
    found = inspect_answer(pipeline, draw_image(0), "What?", build_scene(), max_new_tokens=4)
    tokens = found.answer.report["tokens"]
    inputs = pipeline.answering.encode(
        [found.image], [pipeline.answering.prepare(found.image, "What?", 4)],
        pipeline.answering.encode_scenes([found.answer.scene], pipeline.settings), 4,
    )  # fmt: skip
    with torch.inference_mode():
        first = pipeline.model(**inputs).logits[0, -1].softmax(-1)
    assert tokens[0]["probability"] == pytest.approx(first.max().item(), rel=0.01)  # some ids are never said
    assert tokens[0]["token"] == pipeline.answering.tokenizer.decode([int(first.argmax())])
    assert all(share <= token["probability"] for token in tokens for _, share in token["others"])


def test_words_and_shares_belong_to_the_prompt_and_the_verbalization_when_told(pipeline):
    found = inspect_answer(pipeline, draw_image(0), "How many dogs?", build_scene(), max_new_tokens=3)
    assert len(found.words) == len(found.answer.report["routing"][0].language)
    assert "How many dogs?" in "".join(found.words)
    said = "".join(token for token, _ in found.attended).removeprefix("<s>")
    assert re.sub(r"\s", "", said) == re.sub(r"\s", "", found.answer.auxiliary_text)
    assert sum(share for _, share in found.attended) == pytest.approx(1)


def test_routing_of_a_call_is_what_the_page_shows_when_given_per_layer_and_stream(pipeline):
    layers = len(pipeline.model.model.mixers.layer_indices)
    weights = [[[1, 0, 0], [0, 0.5, 0.5]]] * layers
    found = inspect_answer(
        pipeline, draw_image(0), "What?", build_scene(), max_new_tokens=2, options={"routing": json.dumps(weights)}
    )
    for layer in found.answer.report["routing"]:
        assert layer.image.mean(0).tolist() == [1, 0, 0] and layer.language.mean(0).tolist() == [0, 0.5, 0.5]


def test_weights_of_single_tokens_are_shown_and_change_what_the_answer_rests_on_when_given(pipeline):
    plain = inspect_answer(pipeline, draw_image(0), "How?", build_scene(), max_new_tokens=3)
    layer = plain.answer.report["routing"][0]
    rows = torch.eye(3)[torch.arange(len(layer.image)) % 3]
    words = torch.tensor([[0.0, 1.0, 0.0]]).expand(len(layer.language), -1)
    option = json.dumps({"image": rows.tolist(), "language": words.tolist()})
    found = inspect_answer(
        pipeline, draw_image(0), "How?", build_scene(), max_new_tokens=3, options={"routing": option}
    )
    for shown in found.answer.report["routing"]:
        torch.testing.assert_close(shown.image, rows)
        torch.testing.assert_close(shown.language, words)
    assert [share for _, share in found.attended] != [share for _, share in plain.attended]
    beams = {"options": {"routing": option}, "max_new_tokens": 3, "num_beams": 2}
    assert pipeline(draw_image(0), "How?", build_scene(), **beams).answer
    with pytest.raises(ValueError, match=f"for {len(layer.image)} tokens, got 2 rows"):
        pipeline(draw_image(0), "How?", build_scene(), options={"routing": {"image": torch.ones(2, 3)}})
