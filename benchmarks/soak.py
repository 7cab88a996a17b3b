"""Load and faults: a real server under good and bad requests, for minutes.

    make soak                                        # ten minutes
    python -m benchmarks.soak --minutes 0 --requests 60 --mutations 40    # the short form

What must hold: the server lives; each answer belongs to its own question (the same as when it was asked alone); every
bad request is told 4xx with a message in OpenAI's form, mutated images too, or answered; clients that leave in the
middle cost nothing; memory stays within 5 % after warm-up (25 % in the short form); SIGTERM lets running
answers end. Exit code 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from verbalizers import Scene, TextLines

from .serving_client import Server, build_body, crop_street, encode_image

NUM_CLIENTS = 16
WORDS = ("STOP", "PLEASE", "CAFE", "OPEN", "EXIT", "TAXI", "BOOKS", "MILK", "NORTH", "RIVER", "PIANO", "SALT")
QUESTIONS = ("What is written on the sign?", "Where is the balloon?", "How many cars are there?")


class Soak:
    """Asks a server and keeps the books.

    Args:
        server: The server.
        seed: Of what is asked.
    """

    def __init__(self, server: Server, seed: int) -> None:
        self.server, self.seed = server, seed
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self._lock = threading.Lock()
        self.good = [*self._list_words(), *self._list_images()]
        self.expected = [self._ask_alone(body) for body in self.good]
        self.streamed = [
            index for index, body in enumerate(self.good) if not ("n" in body or "num_beams" in body.get("moai", ()))
        ]

    def _list_words(self) -> list[dict[str, Any]]:
        """Questions about scenes that are brought along: each sign says another word."""
        image = crop_street(0)
        content, size_hw = encode_image(image), (image.height, image.width)
        quads = np.array([[[220, 230], [390, 230], [390, 330], [220, 330]]], np.float32)
        scenes = [Scene(size_hw, text_lines=TextLines(quads, (word,), [0.99])).to_dict() for word in WORDS]
        return [build_body(QUESTIONS[0], content, moai={"scenes": [scene]}, max_tokens=12) for scene in scenes]

    def _list_images(self) -> list[dict[str, Any]]:
        """Questions about images that the server's own verbalizers look at, with all kinds of settings."""
        images = [encode_image(crop_street(number)) for number in range(4)]
        bodies = [build_body(question, image, max_tokens=12) for image in images for question in QUESTIONS]
        for index, body in enumerate(bodies):
            sampled = {"temperature": 1.0, "seed": index}
            told, beams = {"logprobs": True, "top_logprobs": 3}, {"moai": {"num_beams": 3}}
            body |= ({}, sampled, told, beams, sampled | {"n": 2})[index % 5]
        return bodies

    def _ask_alone(self, body: dict[str, Any]) -> str:
        status, reply = self.server.send(body)
        if status != 200:
            raise RuntimeError(f"a good question was told {status}: {reply}")
        return reply["choices"][0]["message"]["content"]

    def note(self, what: str, problem: str | None = None) -> None:
        """Count what happened."""
        with self._lock:
            self.counts[what] += 1
            if problem is not None and len(self.problems) < 20:
                self.problems.append(problem)

    # ------------------------------------------------------------------ what clients do

    def ask_well(self, chance: random.Random) -> None:
        """A good question, whole or streamed."""
        index = chance.randrange(len(self.good))
        body = self.good[index]
        if index not in self.streamed or chance.random() < 0.5:
            status, reply = self.server.send(body)
            text = reply["choices"][0]["message"]["content"] if status == 200 else json.dumps(reply)
        else:
            status, text = self._read_stream(body | {"stream": True})
        if status == 429:
            self.note("told to come again")
        elif status != 200 or text != self.expected[index]:
            self.note("wrong", f"question {index}: expected {self.expected[index]!r}, got {status} {text!r}")
        else:
            self.note("answered")

    def _read_stream(self, body: dict[str, Any]) -> tuple[int, str]:
        connection = self.server.connect()
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            reply = connection.getresponse()
            if reply.status != 200:
                return reply.status, reply.read().decode()
            lines = [line[6:] for line in reply.read().decode().split("\n\n") if line.startswith("data: ")]
            if lines[-1] != "[DONE]":
                return 500, lines[-1]
            pieces = [json.loads(line) for line in lines[:-1]]
            return 200, "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces)
        finally:
            connection.close()

    def ask_badly(self, chance: random.Random) -> None:
        """A bad request of some kind: 4xx with a message."""
        good = self.good[chance.randrange(len(self.good))]
        image = encode_image(crop_street(chance.randrange(4)))
        bad: list[dict[str, Any] | bytes] = [
            b"{",
            b"\xff" * 100,
            b"[" * 50_000,
            {},
            good | {"model": "other"},
            good | {"temperature": -1},
            good | {"n": 99},
            good | {"moai": {"num_beams": 3}, "stream": True},
            good | {"moai": {"options": {"routing": "sideways"}}},
            good | {"moai": {"scenes": [{"image_size_hw": [10**9, 10**9]}]}},
            build_body("", image),
            build_body("why " * 20_000, image),
            build_body("What?", *[image] * 9),
            build_body("What?", b"no image"),
            build_body("What?", image[: len(image) // 2]),
            *(name_image(url) for url in ("/etc/passwd", "file:///etc/passwd", "http://169.254.169.254/", "")),
        ]
        self._expect_refusal(bad[chance.randrange(len(bad))])

    def send_mutated(self, chance: random.Random) -> None:
        """An image with some of its bytes changed, cut off or repeated: refused, or answered."""
        kind = chance.choice(("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"))
        content = bytearray(encode_image(crop_street(chance.randrange(4)).resize((64, 64)), kind))
        for _ in range(chance.randrange(1, 12)):
            place = chance.randrange(len(content)) if chance.random() < 0.5 else chance.randrange(min(80, len(content)))
            how = chance.random()
            if how < 0.7:
                content[place] = chance.randrange(256)
            elif how < 0.8:
                del content[place + 1 :]
            else:
                content[place:place] = content[:place][-20:]
        self._expect_refusal(build_body("What is it?", bytes(content), max_tokens=1, moai={"verbalizers": []}), True)

    def _expect_refusal(self, body: dict[str, Any] | bytes, may_answer: bool = False) -> None:
        status, reply = self.server.send(body)
        is_told = 400 <= status < 500 and bool(reply.get("error", {}).get("message"))
        if is_told or (status == 200 and may_answer):
            self.note("refused" if is_told else "answered though mutated")
        else:
            self.note("wrong", f"a bad request was told {status}: {json.dumps(reply)[:300]}")

    def leave(self, chance: random.Random) -> None:
        """A client that leaves in the middle: of its body, or of the answer."""
        body = json.dumps(self.good[chance.choice(self.streamed)] | {"stream": True, "max_tokens": 400}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        with socket.create_connection(("127.0.0.1", self.server.port), 60) as sock:
            sock.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n")
            if chance.random() < 0.3:
                sock.sendall(body[: len(body) // 2])
            else:
                sock.sendall(body)
                sock.settimeout(chance.random())
                try:
                    sock.recv(chance.choice((1, 400)))
                except TimeoutError:
                    pass
        self.note("left")

    # ------------------------------------------------------------------ load

    def run(self, num_requests: int, actions: list[tuple[float, Callable[[random.Random], None]]]) -> None:
        """Have 16 clients do so many things by chance."""
        left = list(range(num_requests))

        def work() -> None:
            while True:
                with self._lock:
                    if not left:
                        return
                    number = left.pop()
                chance = random.Random(self.seed * 1_000_003 + number)
                (act,) = chance.choices([act for _, act in actions], [share for share, _ in actions])
                try:
                    act(chance)
                except Exception as error:  # noqa: BLE001 - whatever a client meets is written down
                    self.note("wrong", f"{act.__name__}: {type(error).__name__}: {error}")

        self.seed += 1
        threads = [threading.Thread(target=work) for _ in range(NUM_CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def check_end(self) -> None:
        """Terminate the server while it answers: what runs ends well."""
        results: list[tuple[int, str]] = []
        body = self.good[0] | {"stream": True, "temperature": 1.0, "max_tokens": 200}

        def work() -> None:
            try:
                results.append(self._read_stream(body))
            except OSError as error:
                results.append((0, f"{type(error).__name__}"))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        while self.server.get("/metrics").find("moai_requests_running 4") < 0 and any(t.is_alive() for t in threads):
            time.sleep(0.01)
        code = self.server.terminate()
        for thread in threads:
            thread.join()
        statuses = [status for status, _ in results]
        self.note(
            "ended well", None if statuses == [200] * 4 and code in (0, 143) else f"at the end: {results}, {code}"
        )


def name_image(url: str) -> dict[str, Any]:
    """A request that names an image by an address."""
    body = build_body("What?", b"")
    body["messages"][0]["content"][0]["image_url"]["url"] = url
    return body


def main() -> None:
    """Run it and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="moai-nano")
    parser.add_argument("--minutes", type=float, default=10.0, help="at least so long; 0 = one round")
    parser.add_argument("--requests", type=int, default=500, help="mixed requests per round")
    parser.add_argument("--mutations", type=int, default=2000, help="mutated images, once")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.monotonic()
    with Server(arguments.model, "--scene-cache", "64") as server:
        soak = Soak(server, arguments.seed)
        actions = [(0.6, soak.ask_well), (0.3, soak.ask_badly), (0.1, soak.leave)]
        soak.run(arguments.mutations // 4, [(1.0, soak.send_mutated)])  # warm-up: every path, and one round
        soak.run(arguments.requests, actions)
        memory = [server.read_memory()]
        soak.run(arguments.mutations - arguments.mutations // 4, [(1.0, soak.send_mutated)])
        while len(memory) < 2 or time.monotonic() - start < 60 * arguments.minutes:
            soak.run(arguments.requests, actions)
            memory.append(server.read_memory())
        soak.check_end()
    print(", ".join(f"{number} {what}" for what, number in sorted(soak.counts.items())))
    growth = memory[-1] / memory[0] - 1
    shown = ", ".join(f"{each:.0f}" for each in memory)
    print(f"resident memory after each round: {shown} MiB ({growth:+.1%}), {time.monotonic() - start:.0f} s")
    # Two rounds tell a gross leak alone: the allocator's own coming and going is about 5 % of them.
    if growth > (0.05 if arguments.minutes else 0.25):
        soak.problems.append(f"memory grew by {growth:.1%}")
    for problem in soak.problems:
        print(f"wrong: {problem}")
    sys.exit(bool(soak.problems))


if __name__ == "__main__":
    main()
