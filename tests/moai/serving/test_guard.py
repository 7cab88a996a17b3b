"""Who is let in, under which name, how many at a time, and for how long."""

import http.client
import json
import signal
import socket
import threading
import time

import openai
import pytest
from forked_processes import ForkedProcess, run_module, wait_for_line
from pipeline_builders import HangingVerbalizer, write_tiny_checkpoint
from serving_builders import as_data_url, build_body, encode_image, send, serving

from moai.serving.scene_cache import SceneCache, count_bytes

KEY = "pâss word"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def app(folder):
    with serving(folder, api_key=KEY, allowed_hosts=frozenset({"moai.example"}), has_page=True) as app:
        yield app


def test_key_is_wanted_for_what_answers_or_tells_when_there_is_one(app):
    for given in (None, "Bearer", "Bearer other", "Bearer " + KEY[:-1], "Basic " + KEY):
        headers = {} if given is None else {"Authorization": given.encode().decode("latin-1")}
        for method, path, body in (
            ("POST", "/v1/chat/completions", build_body()),
            ("GET", "/v1/models", None),
            ("GET", "/metrics", None),
            ("GET", "/nowhere", None),
            ("POST", "/page/overlay", {"image": "x", "scene": {}}),
        ):
            status, reply = send(app, body, path, method, **headers)
            assert status == 401 and reply["error"]["type"] == "authentication_error"
    right = {"Authorization": f"Bearer {KEY}".encode().decode("latin-1")}
    assert send(app, build_body(), **right)[0] == 200
    assert send(app, None, "/health", "GET")[0] == send(app, None, "/", "GET")[0] == 200


def test_other_names_and_sites_are_refused_when_a_browser_was_led_here(app):
    right = {"Authorization": f"Bearer {KEY}".encode().decode("latin-1")}
    port = app.state.port
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::1", "moai.example.evil"):
        assert send(app, build_body(), Host=host, **right)[0] == 403, host
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "moai.example", f"MOAI.example:{port}"):
        assert send(app, build_body(), Host=host, **right)[0] == 200, host
    for origin in ("https://evil.example", "null", f"http://localhost:{port}", f"http://127.0.0.1:{port + 1}", ""):
        assert send(app, build_body(), Origin=origin, **right)[0] == 403, origin
    assert send(app, build_body(), Origin=f"http://127.0.0.1:{port}", **right)[0] == 200
    assert send(app, build_body(), Content_Type="text/plain", **right)[0] == 422


def test_further_requests_are_told_to_come_again_when_the_queue_is_full(folder):
    hanging = HangingVerbalizer()
    with serving(folder, [hanging], max_queue=2, request_timeout_s=60) as app:
        replies: list = []
        threads = [threading.Thread(target=lambda: replies.append(send(app, build_body()))) for _ in range(2)]
        [thread.start() for thread in threads]
        deadline = time.monotonic() + 30
        while app.state.guard().num_running < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{app.state.port}/v1", api_key="-", max_retries=0)
        with pytest.raises(openai.RateLimitError, match="waiting already") as caught:
            client.chat.completions.create(**build_body())
        assert caught.value.response.headers["Retry-After"] == "1"
        hanging.release()
        [thread.join(60) for thread in threads]
        assert [status for status, _ in replies] == [200, 200]
        assert send(app, build_body())[0] == 200


def test_request_ends_in_time_when_its_verbalizer_hangs(folder):
    hanging = HangingVerbalizer()
    with serving(folder, [hanging], request_timeout_s=1.0, verbalizer_timeout_s=None) as app:
        status, reply = send(app, build_body())
        assert status == 504 and reply["error"]["code"] == "timeout"
        status, reply = send(app, build_body(stream=True))
        assert status == 504
        hanging.release()


def test_body_ends_in_time_when_it_comes_slowly(folder):
    with serving(folder, request_timeout_s=1.0) as app:
        with socket.create_connection(("127.0.0.1", app.state.port), 30) as sock:
            sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
            sock.sendall(b"Content-Length: 1000\r\n\r\n{")
            assert b" 408 " in sock.recv(4096)


def test_running_answers_end_and_new_ones_are_refused_when_the_server_is_terminated(folder, tmp_path):
    """The command itself: SIGTERM in the middle of a stream."""
    words = ["serve", str(folder), "--port", "0", "--verbalizers", "none"]
    server = ForkedProcess(lambda: run_module("moai", *words))
    try:
        line = wait_for_line(server, " answers at ")
        port = int(line.rpartition(":")[2].partition("/")[0])
        name = line.split()[0]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        headers = {"Content-Type": "application/json"}
        body = build_body(model=name, stream=True, max_tokens=300, temperature=1.0)
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        reply = connection.getresponse()
        assert reply.status == 200 and reply.readline().startswith(b"data: ")
        server.send_signal(signal.SIGTERM)
        rest = reply.read()
        assert rest.rstrip().endswith(b"data: [DONE]") and b'"error"' not in rest
        server.communicate(60)
        assert server.returncode in (0, 143)
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", port), 5).close()
    finally:
        server.kill()


def test_cache_keeps_the_scenes_used_last_when_its_bytes_are_full():
    from pipeline_builders import build_scene

    size = count_bytes(build_scene())
    assert size > 60 * 80 * 4
    cache = SceneCache(3 * size)
    for key in "abc":
        cache.put(key, build_scene())
    assert cache.get("a") is not None
    cache.put("d", build_scene())
    assert [cache.get(key) is not None for key in "abcd"] == [True, False, True, True]
    assert len(cache) == 3 and cache.num_bytes == 3 * size
    cache.put("big", build_scene(600, 800))
    assert cache.get("big") is None and len(cache) == 3


def test_page_tells_and_draws_when_it_is_asked(app):
    from pipeline_builders import build_scene, draw_image

    right = {"Authorization": f"Bearer {KEY}".encode().decode("latin-1")}
    status, told = send(app, None, "/page/settings", "GET")
    assert status == 200 and told["needs_key"] is True and told["model"] == "tiny"
    example = told["examples"][0]["image"]
    assert send(app, None, "/page/examples/..%2f..%2fsetup.cfg", "GET", **right)[0] == 404
    connection = http.client.HTTPConnection("127.0.0.1", app.state.port, timeout=60)
    connection.request("GET", example, headers=right)
    assert connection.getresponse().read()[:2] == b"\xff\xd8"
    body = {"image": as_data_url(encode_image(draw_image())), "scene": build_scene().to_dict(), "kinds": ["ocr"]}
    connection.request("POST", "/page/overlay", json.dumps(body), right | {"Content-Type": "application/json"})
    assert connection.getresponse().read()[:2] == b"\xff\xd8"
    for wrong in ({"scene": build_scene(70, 90).to_dict()}, {"image": "/etc/passwd"}, {"scene": {}}):
        status, reply = send(app, body | wrong, "/page/overlay", **right)
        assert status == 400 and "passwd" not in reply["error"]["message"]
