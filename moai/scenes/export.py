"""Scenes as files: images and LLaVA-format questions, to be verbalized and trained on like a user's own data.

    python -m moai.scenes.export --out scenes --length 1000
    moai verbalize scenes/questions.jsonl --out scenes/verbalizations

Other questions about the same images go into a file of their own: ``--file train.jsonl --kinds counting,reading``.

Images are PNG: the same scene is the same file, and the same key of the cache, wherever it is written.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from moai.scenes.scenes import QUESTION_KINDS, SPLITS, Scenes
from verbalizers.core.durable_files import atomic_file, hold_folder

__all__ = ["QUESTIONS_FILE", "encode_png", "export_scenes"]

QUESTIONS_FILE = "questions.jsonl"


def encode_png(image: np.ndarray) -> bytes:
    """A scene's image as a PNG file; its hash is the image's key in a cache of verbalizations.

    Args:
        image: uint8 (H, W, 3).
    """
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def export_scenes(scenes: Scenes, length: int, out: str | Path, file_name: str = QUESTIONS_FILE) -> Path:
    """Write scenes and their questions; images that are there already are kept.

    Args:
        scenes: The stream; its `start` is the first scene.
        length: Number of scenes.
        out: Folder that receives `images/` and the file of questions.
        file_name: Name of that file.

    Returns:
        The file of questions: one line per question, `{"id", "image", "kind", "conversations"}`; a question that
        follows another is the last of its conversation.

    Raises:
        ValueError: `length` is below 1, or another process writes there.
    """
    if length < 1:
        raise ValueError(f"`length` must be at least 1, got {length}.")
    folder = Path(out)
    path = folder / file_name
    with hold_folder(folder), atomic_file(path) as unfinished, unfinished.open("w", encoding="utf-8") as lines:
        for index in track(range(scenes.start, scenes.start + length), "scenes", console=Console(stderr=True)):
            sample = scenes[index]
            name = f"images/{scenes.split}-{scenes.seed}-{index:07d}.png"
            if not (folder / name).is_file():
                with atomic_file(folder / name) as temporary:
                    temporary.write_bytes(encode_png(sample.image))
            for number, asked in enumerate(sample.questions):
                said = [text for turn in (*asked.earlier, (asked.question, asked.answer)) for text in turn]
                turns = [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(said)]
                turns[0]["value"] = f"<image>\n{turns[0]['value']}"
                row = {"id": f"{index}-{number}", "image": name, "kind": asked.kind, "conversations": turns}
                lines.write(json.dumps(row) + "\n")
    return path


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m moai.scenes.export", description="Write scenes as files.")
    parser.add_argument("--out", required=True, help="folder that receives images and questions")
    parser.add_argument("--length", type=int, default=1000, help="number of scenes (default 1000)")
    parser.add_argument("--split", default="train", choices=SPLITS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="first scene")
    parser.add_argument("--image-size", type=int, default=448, help="height and width in pixels (default 448)")
    parser.add_argument("--num-questions", type=int, default=7, help="questions per scene at most (default 7)")
    parser.add_argument(
        "--image-noise", type=float, default=0.0, help="share of grey, dark, bright and framed images (default 0)"
    )
    kinds = ",".join(QUESTION_KINDS)
    parser.add_argument("--kinds", help=f"kinds of questions, repeated ones are asked more often (default {kinds})")
    parser.add_argument("--file", default=QUESTIONS_FILE, help=f"name of the file of questions ({QUESTIONS_FILE})")
    chosen = parser.parse_args(arguments)
    try:
        scenes = Scenes(
            chosen.split,
            chosen.seed,
            chosen.image_size,
            num_questions=chosen.num_questions,
            kinds=QUESTION_KINDS if chosen.kinds is None else tuple(chosen.kinds.split(",")),
            start=chosen.start,
            image_noise=chosen.image_noise,
        )
        path = export_scenes(scenes, chosen.length, chosen.out, chosen.file)
    except ValueError as error:
        parser.error(str(error))
    print(path)


if __name__ == "__main__":
    main()
