"""The page in a real browser: skipped, with its reason, where there is none."""

import shutil

import pytest
from pipeline_builders import draw_image, write_tiny_checkpoint
from serving_builders import build_reader, encode_image, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))
    with serving(folder, [build_reader()], has_page=True, max_new_tokens=12) as app:
        yield app


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[1280, 375])
def page(request, browser, app):
    page = browser.new_page(viewport={"width": request.param, "height": 800})
    page.asked, page.problems = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto(f"http://127.0.0.1:{app.state.port}/")
    page.wait_for_selector("#kinds input")
    yield page
    home = f"http://127.0.0.1:{app.state.port}/"
    assert all(url.startswith((home, "data:", f"blob:{home}")) for url in page.asked), page.asked
    assert page.problems == []
    page.close()


def upload(page, seed=0):
    image = {"name": "a.png", "mimeType": "image/png", "buffer": encode_image(draw_image(seed))}
    page.set_input_files("#file", image)
    page.wait_for_selector("#image:not([hidden])")


def wait_for_answer(page, number=1):
    playwright.expect(page.locator("#turns .assistant")).to_have_count(number)
    playwright.expect(page.locator("#ask")).to_be_enabled(timeout=60_000)
    return page.locator("#turns .assistant").last.inner_text()


def test_page_answers_and_shows_what_was_found_when_an_image_is_asked_about(page):
    assert not page.is_visible("#key")
    upload(page)
    page.fill("#question", "What is it?")
    page.keyboard.press("Enter")
    first = wait_for_answer(page)
    playwright.expect(page.locator("#image")).to_have_attribute("data-drawn", "ocr", timeout=30_000)
    assert first and "MEAN" in page.inner_text("#verbalization")
    page.click("summary >> nth=1")
    assert "%" in page.inner_text("#shares")
    page.uncheck("#kinds input")
    playwright.expect(page.locator("#image")).to_have_attribute("data-drawn", "", timeout=30_000)
    page.click("#again")
    wait_for_answer(page, 2)
    playwright.expect(page.locator("#verbalization")).to_contain_text("switched off", timeout=30_000)
    assert "MEAN" not in page.inner_text("#verbalization")
    page.fill("#question", "And why?")
    page.click("#ask")
    assert wait_for_answer(page, 3)
    page.click("#clear")
    assert page.locator("#turns p").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_page_is_used_by_keyboard_when_there_is_no_mouse(page):
    seen = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.id || document.activeElement.textContent || ''")
        seen.add(name)
        if name == "What is written on the sign?":
            page.keyboard.press("Enter")
            break
    assert seen >= {"file"}
    playwright.expect(page.locator("#question")).to_be_focused(timeout=30_000)
    page.keyboard.press("Enter")
    assert wait_for_answer(page)


def test_page_says_what_is_wrong_when_a_file_is_no_image(page):
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"no image"})
    page.fill("#question", "What is it?")
    page.click("#ask")
    playwright.expect(page.locator("#problem")).to_contain_text("expected an image", timeout=30_000)
    assert page.input_value("#question") == "What is it?" and page.locator("#turns p").count() == 0
    page.problems = [text for text in page.problems if "400" not in text]  # the browser notes the status


def test_page_takes_text_for_text_when_it_looks_like_html(page):
    upload(page)
    page.fill("#question", "<img src=x onerror=alert(1)> <b>bold?</b>")
    page.click("#ask")
    wait_for_answer(page)
    assert page.locator("#turns .user").inner_text().startswith("<img src=x")
    assert page.locator("#turns img, #turns b").count() == 0


def test_page_asks_for_the_key_when_there_is_one(browser, tmp_path):
    with serving(write_tiny_checkpoint(tmp_path), api_key="secret", has_page=True) as guarded:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{guarded.state.port}/")
        page.wait_for_selector("#key", state="visible")
        upload(page)
        page.fill("#question", "What is it?")
        page.click("#ask")
        playwright.expect(page.locator("#problem")).to_contain_text("API key", timeout=30_000)
        page.fill("#key", "secret")
        page.click("#ask")
        assert wait_for_answer(page)
        page.close()
