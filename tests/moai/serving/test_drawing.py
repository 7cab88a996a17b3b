"""Images in answers: a tiny random Emu that says [IMG], over HTTP and on the page."""

import base64
import io
import shutil

import openai
import pytest
import torch
from emu_builders import make_image, save_emu
from PIL import Image
from serving_builders import build_body, build_message, encode_image, send, serving

from moai import Pipeline

pytest.importorskip("diffusers", reason="the extra `generate` is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_emu(tmp_path_factory.mktemp("emu"), draws=True)


def teach_drawing(pipeline):
    """Have a model say [IMG] wherever it may."""
    head, start = pipeline.model.lm_head, pipeline.model.config.image_start_token_id
    said = torch.nn.functional.one_hot(torch.tensor(start), head.weight.shape[0]).float() * 100
    head.register_forward_hook(lambda module, inputs, logits: logits + said)


@pytest.fixture(scope="module")
def app(folder):
    with serving(folder, max_drawn_images=2, max_new_tokens=8, has_page=True) as app:
        teach_drawing(app.state.engine.pipeline)
        yield app


OPTIONS = {"images": 2, "steps": 2}


def read_image(part):
    return Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].removeprefix("data:image/png;base64,"))))


@pytest.mark.parametrize("is_streamed", [False, True])
def test_answer_holds_the_pipelines_images_when_they_are_asked_for(app, folder, is_streamed):
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{app.state.port}/v1", api_key="none", max_retries=0, timeout=60)
    asked = {"model": "tiny", "messages": [build_message("Draw.", make_image(0))], "max_tokens": 6}
    reply = client.chat.completions.create(**asked, stream=is_streamed, extra_body={"moai": {"options": OPTIONS}})
    if is_streamed:
        pieces = list(reply)
        text, extras = "".join(piece.choices[0].delta.content or "" for piece in pieces), pieces[-1].model_extra["moai"]
    else:
        text, extras = reply.choices[0].message.content, reply.model_extra["moai"]
    assert set(extras) == {"parts", "confidence", "is_unsure"}
    pipeline = Pipeline.from_pretrained(folder)
    teach_drawing(pipeline)
    wanted = pipeline(make_image(0), "Draw.", options=OPTIONS, max_new_tokens=6)
    assert [part["type"] for part in extras["parts"]] == ["image_url", "image_url", "text"]
    assert text == wanted.answer.strip() == extras["parts"][2]["text"] != ""
    for part, image in zip(extras["parts"], wanted.parts[:2], strict=False):
        assert read_image(part).tobytes() == image.tobytes()


def test_drawing_is_bounded_when_strangers_ask_for_it(app, folder):
    for options, said in (
        ({"images": 3}, "at most 2 of `images`"),
        ({"images": 1, "steps": 51}, "at most 50 of `steps`"),
        ({"images": 1, "height": 8000}, "options that are served"),
    ):
        status, reply = send(app, build_body("Draw.", moai={"options": options}))
        assert status == 400 and said in reply["error"]["message"]
    beams = build_body("Draw.", moai={"options": OPTIONS, "num_beams": 2})
    assert "one answer without beams" in send(app, beams)[1]["error"]["message"]
    assert send(app, build_body("Say."))[1]["choices"][0]["message"]["content"]
    with serving(folder) as silent:
        assert "at most 0" in send(silent, build_body("Draw.", moai={"options": OPTIONS}))[1]["error"]["message"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
def test_page_shows_images_when_an_answer_holds_some(app):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 375, "height": 800})
        page.goto(f"http://127.0.0.1:{app.state.port}/")
        image = {"name": "a.png", "mimeType": "image/png", "buffer": encode_image(make_image(0))}
        page.set_input_files("#file", image)
        page.wait_for_selector("#image:not([hidden])")
        page.fill("#drawn", "1")
        page.fill("#question", "Draw.")
        page.click("#ask")
        shown = page.locator("#turns .assistant img")
        playwright.expect(shown).to_have_count(1, timeout=90_000)
        assert page.evaluate("document.querySelector('#turns img').naturalWidth") == 16
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.fill("#question", "And now?")  # a turn with images in it is told as its text
        page.fill("#drawn", "0")
        page.click("#ask")
        playwright.expect(page.locator("#turns .assistant")).to_have_count(2)
        playwright.expect(page.locator("#ask")).to_be_enabled(timeout=60_000)
        assert page.inner_text("#problem") == ""
        browser.close()
