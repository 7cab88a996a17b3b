"""Images by address: only from hosts that were named, never from inside a network, bounded in bytes and seconds."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pipeline_builders import draw_image
from serving_builders import as_data_url, encode_image

from moai.serving.media import MediaReader, is_public_address

IMAGE = encode_image(draw_image())


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802 - the library's name
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
            self.end_headers()
            return
        if self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b"x")
                self.server.pause.wait(0.1)
            return
        self.server.asked.append((self.path, self.headers["Host"]))
        self.send_response(404 if self.path == "/gone" else 200)
        self.end_headers()
        self.wfile.write(IMAGE if self.path == "/a.png?b=c" else b"x" * 10_000)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.pause = [], threading.Event()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.pause.set()
        server.shutdown()


def read_from(server, url, **settings):
    host = f"localhost:{server.server_address[1]}"
    reader = MediaReader({host}, **{"is_allowed_address": lambda address: True, "timeout_s": 5.0} | settings)
    return reader.read(url.replace("HOST", host))


def test_image_is_read_when_its_host_was_named(server):
    assert read_from(server, "http://HOST/a.png?b=c") == IMAGE
    assert server.asked == [("/a.png?b=c", f"localhost:{server.server_address[1]}")]
    assert read_from(server, "http://HOST/to//a.png?b=c") == IMAGE
    assert MediaReader().read(as_data_url(IMAGE)) == IMAGE


@pytest.mark.parametrize(
    ("url", "settings", "said"),
    [
        ("http://127.0.0.1:1/a.png", {}, "--allow-media-host"),
        ("http://HOST@evil.example/a.png", {}, "--allow-media-host"),
        ("http://evil.example/HOST", {}, "--allow-media-host"),
        ("http://HOST.evil.example/a.png", {}, "data URL"),
        ("http://HOST/to/http://evil.example:evil/", {}, "--allow-media-host"),
        ("http://HOST/to/http://127.0.0.1:1/a.png", {}, "--allow-media-host"),
        ("http://HOST/to/file:///etc/passwd", {}, "--allow-media-host"),
        ("http://HOST/to/http://HOST/to/http://HOST/to/http://HOST/to/http://HOST/a", {}, "redirects"),
        ("http://HOST/a.png?b=c", {"is_allowed_address": is_public_address}, "inside a network"),
        ("http://HOST/gone", {}, "status 404"),
        ("http://HOST/large", {"max_bytes": 5000}, "at most 5000 bytes"),
        ("http://HOST/slow", {"timeout_s": 0.5}, "no answer"),
        ("https://HOST/a.png", {}, "no answer"),
        ("ftp://HOST/a.png", {}, "data URL"),
        ("file:///etc/passwd", {}, "data URL"),
        ("/etc/passwd", {}, "data URL"),
        ("http://[::1/a", {}, "data URL"),
        ("http://HOST:99999/a", {}, "--allow-media-host|data URL"),
        ("data:image/png,abc", {}, "base64"),
        (as_data_url(b"x" * 600), {"max_bytes": 500}, "at most 500 bytes"),
        ("data:image/png;base64,\u00e9\u00e9", {}, "base64"),
    ],
)
def test_address_is_refused_without_repeating_it_when_it_is_not_good(server, url, settings, said):
    with pytest.raises(ValueError, match=said) as caught:
        read_from(server, url, **settings)
    assert not any(secret in str(caught.value) for secret in ("passwd", "evil", "localhost", "127.0.0.1"))


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "172.16.5.4", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
     "255.255.255.255", "::1", "::", "fe80::1%eth0", "fd00:ec2::254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe",
     "2002:a9fe:a9fe::", "ff02::1", "192.0.2.1", "no address"],
)  # fmt: skip
def test_address_is_not_public_when_it_lies_inside(address):
    assert not is_public_address(address)


def test_address_is_public_when_it_is():
    assert is_public_address("93.184.215.14") and is_public_address("2606:2800:21f:cb07:6820:80da:af6b:8b2c")


def test_checked_address_is_connected_to_when_the_name_would_change_its_answer(server, monkeypatch):
    """DNS rebinding: a second answer would lead elsewhere; there is no second question."""
    port, ask, asked = server.server_address[1], socket.getaddrinfo, []

    def answer(host, *args, **kwargs):
        asked.append(host)
        return ask("127.0.0.1" if host == "rebound.example" else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    checked = []
    reader = MediaReader({f"rebound.example:{port}"}, is_allowed_address=lambda a: not checked.append(a))
    assert reader.read(f"http://rebound.example:{port}/a.png?b=c") == IMAGE
    assert asked.count("rebound.example") == 1 and checked == ["127.0.0.1"]
    assert server.asked == [("/a.png?b=c", f"rebound.example:{port}")]
