"""Addresses and data URLs: refused unless allowed, bounded when allowed."""

import base64
import http.server
import pathlib
import threading

import numpy as np
import pytest
from encoded_images import GRADIENT, encode
from PIL import Image

from moai.processing.image_loading import ImageLoadError, is_url, load_image

# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://a/b.png", True),
        ("HTTPS://a/b.png", True),
        ("file:///etc/passwd", True),
        ("ftp://a/b", True),
        ("data:image/png;base64,AA", True),
        ("image.png", False),
        ("/tmp/http/image.png", False),
        ("C:\\images\\a.png", False),
        ("dir:name/image.png", False),
        (pathlib.Path("a.png"), False),
        (b"http://a", False),
    ],
)
def test_is_url_tells_addresses_from_paths_when_given(text: object, expected: bool) -> None:
    assert is_url(text) is expected


@pytest.fixture
def image_server():
    """A local web server: /ok.png, /long.png (never ends), /to-file, /to-ftp, /to-ok (redirects)."""
    good = encode(Image.fromarray(GRADIENT))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            targets = {"/to-file": "file:///etc/hostname", "/to-ftp": "ftp://127.0.0.1/ok.png", "/to-ok": "/ok.png"}
            if self.path in targets:
                self.send_response(302)
                self.send_header("Location", targets[self.path])
                self.end_headers()
                return
            self.send_response(404 if self.path == "/missing.png" else 200)
            self.end_headers()
            self.wfile.write(good if self.path == "/ok.png" else b"x" * 5000)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_load_image_refuses_address_when_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.create_connection", refuse)
    with pytest.raises(ImageLoadError, match="allow_urls=True"):
        load_image("http://127.0.0.1:9/image.png")


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://host/a.png", "gopher://host/a"])
def test_load_image_refuses_scheme_when_urls_are_allowed(address: str) -> None:
    with pytest.raises(ImageLoadError, match=r"http\(s\)"):
        load_image(address, allow_urls=True)


@pytest.mark.parametrize("name", ["/ok.png", "/to-ok"])
def test_load_image_downloads_when_urls_are_allowed(image_server: str, name: str) -> None:
    np.testing.assert_array_equal(np.asarray(load_image(image_server + name, allow_urls=True)), GRADIENT)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/to-file", "(?i)redirect"),
        ("/to-ftp", "(?i)redirect"),
        ("/missing.png", "404"),
        ("/long.png", "at most 1000 bytes"),
    ],
)
def test_load_image_raises_when_download_misbehaves(image_server: str, name: str, message: str) -> None:
    with pytest.raises(ImageLoadError, match=message):
        load_image(image_server + name, allow_urls=True, max_bytes=1000)


def test_load_image_raises_its_error_when_server_is_absent() -> None:
    with pytest.raises(ImageLoadError, match="no answer"):
        load_image("http://127.0.0.1:1/a.png", allow_urls=True)


def test_load_image_decodes_data_url_only_when_allowed() -> None:
    address = "data:image/png;base64," + base64.b64encode(encode(Image.fromarray(GRADIENT))).decode()
    with pytest.raises(ImageLoadError, match="allow_data_urls=True"):
        load_image(address, allow_urls=True)
    np.testing.assert_array_equal(np.asarray(load_image(address, allow_data_urls=True)), GRADIENT)


@pytest.mark.parametrize("address", ["data:image/png;base64,@@@@", "data:text/plain,hello", "data:"])
def test_load_image_raises_its_error_when_data_url_is_malformed(address: str) -> None:
    with pytest.raises(ImageLoadError):
        load_image(address, allow_data_urls=True)


def test_load_image_bounds_data_url_when_it_is_long() -> None:
    with pytest.raises(ImageLoadError, match="at most 100 bytes"):
        load_image("data:image/png;base64," + "A" * 1000, allow_data_urls=True, max_bytes=100)
