"""What a question costs once everything is loaded: processor time alone, in a batch of 8, and without looking.

    OMP_NUM_THREADS=1 python -m benchmarks.question
    OMP_NUM_THREADS=1 python -m benchmarks.question --rounds 9 --model checkpoints/moai-nano

The model's own verbalizers look at eight crops of the bundled images of one size. "answer alone" is the same question
with the scene at hand: what is left is the model; "a further one" asks again about a scene whose image, map and
verbalization the model has encoded. Calls alternate; medians [quartiles].
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from PIL import Image

from benchmarks.measurement import Spread, describe_machine, markdown_table, paired_ratio, time_alternating
from moai import Pipeline
from verbalizers import Scene

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
QUESTION = "What is this?"
BATCH = 8


def load_crops() -> list[Image.Image]:
    """Eight different images of 256 x 256 pixels."""
    page, street = (Image.open(EXAMPLES / name).convert("RGB") for name in ("page.png", "street.jpg"))
    crops = []
    for index in range(BATCH):
        source = (page, street)[index % 2].resize((512, 512))
        left, top = 64 * (index // 2), 32 * index
        crops.append(source.crop((left, top, left + 256, top + 256)))
    return crops


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="checkpoints/moai-nano")
    parser.add_argument("--rounds", type=int, default=5)
    parsed = parser.parse_args(arguments)
    pipeline = Pipeline.from_pretrained(parsed.model)
    images = load_crops()
    scenes = pipeline.verbalize(images)

    remembering = pipeline.with_answering(type(pipeline.answering)(pipeline.model, pipeline.processor))

    def ask(scenes: list[Scene | None]) -> None:
        for image, scene in zip(images, scenes, strict=True):
            pipeline.answering.encoded.forget()
            pipeline(image, QUESTION, scene)

    def ask_again() -> None:
        for image, scene in zip(images, scenes, strict=True):
            remembering(image, QUESTION, scene)

    def ask_together() -> None:
        pipeline.answering.encoded.forget()
        pipeline(images, [QUESTION] * BATCH)

    calls = {
        "a question": lambda: ask([None] * BATCH),
        f"in a batch of {BATCH}": ask_together,
        "answer alone": lambda: ask(scenes),
        "a further one": ask_again,
    }
    device = torch.device("cpu")
    times = time_alternating(calls, parsed.rounds, device, clock=time.process_time)
    first = times["a question"]
    rows = [
        [name, Spread.of([value / BATCH / 1e3 for value in values]).shown(3), paired_ratio(values, first).shown(2)]
        for name, values in times.items()
    ]
    print(f"{describe_machine(device)}, processor time\n")
    print("\n".join(markdown_table(["per question", "seconds", "ratio to a question"], rows)))


if __name__ == "__main__":
    main()
