"""Scenes as files: pictures and LLaVA-format questions, to be verbalized and trained on like a user's own data.

    python -m moai.data.scene_export --out scenes --length 1000
    moai verbalize scenes/questions.jsonl --out scenes/verbalizations

Pictures are PNG: the same scene is the same file, and the same key of the cache, wherever it is written.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from moai.data.scenes import SPLITS, Scenes

__all__ = ["QUESTIONS_FILE", "encode_picture", "export_scenes"]

QUESTIONS_FILE = "questions.jsonl"


def encode_picture(image: np.ndarray) -> bytes:
    """A scene's picture as a PNG file; its hash is the picture's key in a cache of verbalizations.

    Args:
        image: uint8 (H, W, 3).
    """
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def export_scenes(scenes: Scenes, length: int, out: str | Path) -> Path:
    """Write scenes and their questions.

    Args:
        scenes: The stream; its `start` is the first scene.
        length: Number of scenes.
        out: Folder that receives `images/` and the file of questions.

    Returns:
        The file of questions: one line per question, `{"id", "image", "kind", "conversations"}`.

    Raises:
        ValueError: `length` is below 1.
    """
    if length < 1:
        raise ValueError(f"`length` must be at least 1, got {length}.")
    folder = Path(out)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    path = folder / QUESTIONS_FILE
    with path.open("w", encoding="utf-8") as lines:
        for index in range(scenes.start, scenes.start + length):
            sample = scenes[index]
            name = f"images/{scenes.split}-{scenes.seed}-{index:07d}.png"
            (folder / name).write_bytes(encode_picture(sample.image))
            for number, asked in enumerate(sample.questions):
                turns = [{"from": "human", "value": f"<image>\n{asked.question}"}]
                turns.append({"from": "gpt", "value": asked.answer})
                row = {"id": f"{index}-{number}", "image": name, "kind": asked.kind, "conversations": turns}
                lines.write(json.dumps(row) + "\n")
    return path


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m moai.data.scene_export", description="Write scenes as files.")
    parser.add_argument("--out", required=True, help="folder that receives pictures and questions")
    parser.add_argument("--length", type=int, default=1000, help="number of scenes (default 1000)")
    parser.add_argument("--split", default="train", choices=SPLITS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="first scene")
    parser.add_argument("--image-size", type=int, default=448, help="height and width in pixels (default 448)")
    parser.add_argument("--num-questions", type=int, default=7, help="questions per scene at most (default 7)")
    chosen = parser.parse_args(arguments)
    try:
        scenes = Scenes(
            chosen.split, chosen.seed, chosen.image_size, num_questions=chosen.num_questions, start=chosen.start
        )
        path = export_scenes(scenes, chosen.length, chosen.out)
    except ValueError as error:
        parser.error(str(error))
    print(path)


if __name__ == "__main__":
    main()
