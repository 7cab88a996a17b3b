"""Requests per second of ``moai serve``: 1, 4 and 16 clients, batching off and on, scenes kept and not.

    python -m benchmarks.serving --requests 16 --rounds 3

Two servers run side by side, one with batches of 1 and one of 8; each round asks both in turn for every number of
clients, so that what else the machine does meets both. "cold" is a new image with each request, "warm" images whose
scenes are kept.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections import defaultdict
from itertools import count

import torch

from .measurement import describe_machine, markdown_table
from .serving_client import Server, crop_street, encode_image

QUESTIONS = (
    "What is written on the sign?",
    "Where is the balloon?",
    "How many cars are there?",
    "What is on the road?",
)
CLIENTS = (1, 4, 16)


def measure(server: Server, images: list[bytes], num_clients: int) -> float:
    """Requests per second when clients ask one question about each image, one after the other each."""
    waiting = list(enumerate(images))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                if not waiting:
                    return
                index, image = waiting.pop()
            server.ask(QUESTIONS[index % len(QUESTIONS)], image, max_tokens=24)

    threads = [threading.Thread(target=work) for _ in range(num_clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(images) / (time.perf_counter() - start)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="moai-nano")
    parser.add_argument("--requests", type=int, default=16, help="per cell and round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(describe_machine(torch.device("cpu")))
    numbers = count()
    rates: dict[tuple[int, str, int], list[float]] = defaultdict(list)
    kept = [encode_image(crop_street(next(numbers))) for _ in range(4)]
    with (
        Server(arguments.model, "--batch-size", "1") as single,
        Server(arguments.model, "--batch-size", "8") as batching,
    ):
        servers = {1: single, 8: batching}
        for server in servers.values():  # verbalizers load at the first image
            measure(server, kept, 1)
        for _ in range(arguments.rounds):
            for num_clients in CLIENTS:
                new = [encode_image(crop_street(next(numbers))) for _ in range(arguments.requests)]
                for size, server in servers.items():
                    rates[size, "cold", num_clients].append(measure(server, new, num_clients))
                    rates[size, "warm", num_clients].append(
                        measure(server, kept * (arguments.requests // 4), num_clients)
                    )
        memory = {size: server.read_memory() for size, server in servers.items()}
    rows = []
    for scenes in ("cold", "warm"):
        for num_clients in CLIENTS:
            ones, eights = (rates[size, scenes, num_clients] for size in (1, 8))
            ratio = statistics.median(b / a for a, b in zip(ones, eights, strict=True))
            medians = [f"{statistics.median(values):.2f}" for values in (ones, eights)]
            rows.append([f"{scenes}, {num_clients}", *medians, f"{ratio:.2f}"])
    print("\nrequests per second, medians of rounds\n")
    print("\n".join(markdown_table(["scenes, clients", "batches of 1", "batches of 8", "ratio"], rows)))
    print(f"\nresident memory: {memory[1]:.0f} MiB with batches of 1, {memory[8]:.0f} MiB with batches of 8")


if __name__ == "__main__":
    main()
