"""The screenshot of the page in docs/serving.md: a real answer about the bundled street in a real browser.

python -m recipes.page_screenshot docs/page.png
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from benchmarks.serving_client import Server

__all__ = ["main"]


def main() -> None:
    """Ask on the page and save what it shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="of the PNG")
    arguments = parser.parse_args()
    from playwright.sync_api import expect, sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with Server("moai-nano", "--page") as server, sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 860})
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.get_by_role("button", name="What is written on the sign?").click()
        expect(page.locator("#question")).to_be_focused()
        page.keyboard.press("Enter")
        drawn = "segmentation,detection,scene_graph,ocr"
        expect(page.locator("#image")).to_have_attribute("data-drawn", drawn, timeout=120_000)
        page.screenshot(path=arguments.path, full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
