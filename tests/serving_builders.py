"""A real server of a tiny checkpoint in a thread, images as clients send them, and a plain HTTP client."""

from __future__ import annotations

import base64
import http.client
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image
from pipeline_builders import ScriptedVerbalizer, build_text_lines, draw_image

from moai import Pipeline
from moai.serving.app import build_app
from moai.serving.server import run_app
from moai.serving.settings import ServingSettings


def encode_image(image: Image.Image, kind: str = "PNG") -> bytes:
    """The bytes of an image."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def as_data_url(content: bytes) -> str:
    """Bytes as clients send them."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def build_message(question: str, *images: Image.Image | bytes | str) -> dict[str, Any]:
    """A user's message with images in front of its question; a string is an address as it stands."""
    contents = [encode_image(image) if isinstance(image, Image.Image) else image for image in images]
    urls = [content if isinstance(content, str) else as_data_url(content) for content in contents]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}


def build_body(question: str = "What is it?", *images: Any, **fields: Any) -> dict[str, Any]:
    """A request's body, about an image of noise unless others are given."""
    message = build_message(question, *(images or (draw_image(),)))
    return {"model": "tiny", "messages": [message], "max_tokens": 8} | fields


def build_reader() -> ScriptedVerbalizer:
    """A verbalizer that reads the mean colour of an image: what it says tells images apart."""
    return ScriptedVerbalizer("ocr", lambda image: build_text_lines(f"MEAN {int(np.mean(image) * 100)}"))


@contextmanager
def serving(folder: Any, verbalizers: Any = (), **settings: Any) -> Iterator[Any]:
    """Serve a checkpoint; yields the application, with its port in ``app.state.port``."""
    pipeline = Pipeline.from_pretrained(folder, verbalizers=[])
    pipeline.verbalizers = list(verbalizers)
    app = build_app(pipeline, ServingSettings(**{"name": "tiny"} | settings))
    is_up = threading.Event()
    servers = []

    def note_port(port: int) -> None:
        app.state.port = port
        is_up.set()

    def work() -> None:
        run_app(app, "127.0.0.1", 0, 20, note_port, servers.append)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert is_up.wait(60)
    try:
        yield app
    finally:
        servers[0].should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def send(
    app: Any, body: Any, path: str = "/v1/chat/completions", method: str = "POST", **headers: str
) -> tuple[int, Any]:
    """Status and JSON (or text) of one request; a body may be bytes, as they are."""
    connection = http.client.HTTPConnection("127.0.0.1", app.state.port, timeout=60)
    content = json.dumps(body).encode() if isinstance(body, dict) else body
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    is_chunked = "Transfer-Encoding" in given
    connection.request(method, path, content, {"Content-Type": "application/json"} | given, encode_chunked=is_chunked)
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    return reply.status, json.loads(text) if text.startswith("{") else text
