"""Recipes of TCL and data2vec on a few files, small enough to run in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["build_pretask_recipe", "write_captioned_images"]

_TOWER = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
_TEXT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
_NOUNS = ("dog", "cat", "car", "tree")
_COLOURS = ("red", "green", "blue")


def write_captioned_images(folder: Path, count: int = 12) -> Path:
    """Images of one colour with noise, and rows that name it; the rows' file."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, rows = np.random.default_rng(0), []
    for number in range(count):
        pixels = rng.integers(0, 60, (36, 40, 3), dtype=np.uint8)
        pixels[..., number % 3] += 150
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
        said = f"A {_COLOURS[number % 3]} {_NOUNS[number % 4]}."
        rows.append(json.dumps({"image": f"{number:02d}.png", "caption": [said, said + " It is here."]}))
    (folder / "captions.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder / "captions.jsonl"


def build_pretask_recipe(task: str, data: Path, output_folder: Path, **overrides: Any) -> dict[str, Any]:
    """A recipe of four steps.

    Args:
        task: "tcl" or "data2vec".
        data: From :func:`write_captioned_images`.
        output_folder: Of the run.
        **overrides: Dotted names with ``__`` for the dots.
    """
    recipe: dict[str, Any] = {
        "task": task,
        "output_folder": str(output_folder),
        "seed": 3,
        "data": {"sources": [{"path": str(data)}]},
        "optimization": {"num_steps": 4, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-3},
        "saving": {"every_steps": 1, "keep": 9},
        "watching": {"every_steps": 1, "has_plots": False},
    }
    if task == "tcl":
        text = _TEXT | {"max_position_embeddings": 16}
        recipe["model"] = {"vision": _TOWER, "text": text, "num_text_layers": 1, "projection_dim": 8}
        recipe["model"] |= {"vocab_size": 60, "max_text_length": 12}
        recipe |= {"queue_size": 8, "momentum": 0.9}
    else:
        recipe["model"] = {"fields": _TOWER}
        recipe |= {"mask": {"share": 0.6, "min_block": 2}, "teacher": {"start": 0.8, "end": 0.9, "num_steps": 3}}
    for name, value in overrides.items():
        *parents, last = name.split("__")
        place = recipe
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return recipe
