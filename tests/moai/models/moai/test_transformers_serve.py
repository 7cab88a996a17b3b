"""``transformers serve`` on a checkpoint of ours, over loopback: chat completions and responses, streamed and whole."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
import torch

from moai import MoAIForConditionalGeneration, MoAIProcessor
from moai.checkpoints.io.lookup import BUNDLED_FOLDER

for _package in ("fastapi", "uvicorn", "openai"):
    pytest.importorskip(_package, reason=f"needs {_package}: pip install fastapi uvicorn openai")

pytestmark = pytest.mark.slow
REPO_ROOT = BUNDLED_FOLDER.parent
FOLDER = BUNDLED_FOLDER / "moai-nano"
IMAGE = REPO_ROOT / "examples" / "street.jpg"
QUESTION = "Where is the balloon?"


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = tmp_path_factory.mktemp("server")
    options = ["--trust-remote-code", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    command = [
        sys.executable,
        "-m",
        "transformers.cli.transformers",
        "serve",
        *options,
        "--dtype",
        "float32",
        str(FOLDER),
    ]
    environment = os.environ | {"PYTHONPATH": str(REPO_ROOT), "HF_MODULES_CACHE": str(place / "code")}
    with (place / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=place, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            assert server.poll() is None, (place / "log").read_text()
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def expected() -> str:
    model = MoAIForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32)
    processor = MoAIProcessor.from_pretrained(FOLDER)
    inputs = processor(images=str(IMAGE), questions=QUESTION, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=16)[0, inputs["input_ids"].shape[1] :]
    return processor.decode(ids, skip_special_tokens=True).strip()


def post(url: str, **body: object) -> str:
    content = json.dumps({"model": str(FOLDER)} | body).encode()
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read().decode()


def events(text: str) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def image() -> str:
    return "data:image/jpeg;base64," + base64.b64encode(IMAGE.read_bytes()).decode()


@pytest.mark.parametrize("is_streaming", [False, True])
def test_serve_answers_chat_completions_as_generate_does(address: str, expected: str, is_streaming: bool) -> None:
    content = [{"type": "image_url", "image_url": {"url": image()}}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    text = post(f"{address}/v1/chat/completions", messages=messages, max_tokens=16, stream=is_streaming)
    if is_streaming:
        pieces = [choice["delta"].get("content") or "" for event in events(text) for choice in event["choices"]]
        assert sum(map(bool, pieces)) > 1 and "".join(pieces).strip() == expected
    else:
        assert json.loads(text)["choices"][0]["message"]["content"].strip() == expected


@pytest.mark.parametrize("is_streaming", [False, True])
def test_serve_answers_responses_as_generate_does(address: str, expected: str, is_streaming: bool) -> None:
    content = [{"type": "input_image", "image_url": image()}, {"type": "input_text", "text": QUESTION}]
    said = {"input": [{"role": "user", "content": content}], "max_output_tokens": 16, "stream": is_streaming}
    text = post(f"{address}/v1/responses", **said)
    response = events(text)[-1]["response"] if is_streaming else json.loads(text)
    assert response["output"][0]["content"][0]["text"].strip() == expected
