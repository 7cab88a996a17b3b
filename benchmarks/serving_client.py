"""A server as a process, and requests to it: for the measurements and the soak."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from PIL import Image

__all__ = ["Server", "as_data_url", "build_body", "crop_street", "encode_image"]

NAME = "moai"
_STREET = Path(__file__).resolve().parent.parent / "examples" / "street.jpg"


def crop_street(number: int) -> Image.Image:
    """The bundled street with some of its border cut off: for each number below 4096 other pixels."""
    with Image.open(_STREET) as street:
        left, top = number % 64, number // 64
        return street.convert("RGB").crop((left, top, street.width, street.height))


def encode_image(image: Image.Image, kind: str = "JPEG") -> bytes:
    """The bytes of an image."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def as_data_url(content: bytes) -> str:
    """Bytes as clients send them."""
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()


def build_body(question: str, *images: bytes, **fields: Any) -> dict[str, Any]:
    """A chat request."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": as_data_url(each)}} for each in images]
    content = [*parts, {"type": "text", "text": question}]
    return {"model": NAME, "messages": [{"role": "user", "content": content}]} | fields


class Server:
    """``moai serve`` as a process of its own.

    Args:
        model: Checkpoint.
        *options: Of the command.
    """

    def __init__(self, model: str, *options: str) -> None:
        command = [sys.executable, "-m", "moai", "serve", model, "--name", NAME, "--port", "0", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if " answers at " in line:
                self.port = int(line.split("/v1")[0].rpartition(":")[2])
                break
        else:
            raise RuntimeError(f"the server ended with exit code {self.process.wait()}")
        # What it says later is shown, and its pipe does not fill.
        threading.Thread(target=lambda: [print(line, end="", file=sys.stderr) for line in self.process.stderr]).start()

    def connect(self, timeout_s: float = 300.0) -> http.client.HTTPConnection:
        """A new connection."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)

    def send(self, body: dict[str, Any] | bytes, path: str = "/v1/chat/completions") -> tuple[int, dict[str, Any]]:
        """Status and content of one request."""
        connection = self.connect()
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request("POST", path, content, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read())
        finally:
            connection.close()

    def get(self, path: str) -> str:
        """Content of a page."""
        connection = self.connect()
        connection.request("GET", path)
        text = connection.getresponse().read().decode()
        connection.close()
        return text

    def ask(self, *args: Any, **fields: Any) -> str:
        """The answer to a question."""
        status, reply = self.send(build_body(*args, **fields))
        if status != 200:
            raise RuntimeError(f"status {status}: {reply}")
        return reply["choices"][0]["message"]["content"]

    def read_memory(self) -> float:
        """Resident memory in MiB."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def terminate(self) -> int:
        """End it as a container's host does; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
