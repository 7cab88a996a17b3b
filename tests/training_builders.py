"""A tiny checkpoint with its processor, and recipes for training it: everything real, small and seeded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from builders import build_tiny_config, build_tiny_model
from forked_processes import ForkedProcess, run_ranks

from moai import InternLM2Tokenizer, MoAIProcessor
from moai.models.moai.image_processing_moai import MoAIImageProcessor
from recipes.nano.tokenization_training import train_tokenizer

REPO_ROOT = Path(__file__).resolve().parent.parent
NUM_SAMPLES = 12
#: Laid over a recipe of the repository, so that documented commands end soon.
SHORT_TRAINING = (
    "optimization.num_steps=2",
    "optimization.batch_size=2",
    "optimization.micro_batch_size=2",
    "optimization.precision=fp32",  # quicker than bf16 for so few numbers
    "watching.every_steps=1",
)
_CORPUS = [
    "AI assistant should give answers to the user. USER: how many dogs? ASSISTANT: two dogs, yes.",
    "The image includes bounding box coordinates and their objects: [0.10, 0.20, 0.30, 0.40] cat, and [..] dog.",
]


@lru_cache(maxsize=1)
def _tokenizer() -> InternLM2Tokenizer:
    with TemporaryDirectory() as folder:
        return train_tokenizer(_CORPUS * 9, 360, Path(folder))


def write_tiny_checkpoint(folder: Path, family: str = "llama", **fields: Any) -> Path:
    """Save a tiny model and a processor that fits it.

    Args:
        folder: Where to.
        family: Decoder family.
        **fields: Of ``MoAIConfig``, for example ``plora_rank=4``.
    """
    tokenizer = _tokenizer()
    image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    # Every id that it may generate is a piece.
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 2048} | fields.pop("text", {})
    config = build_tiny_config(family, text=text, image_token_id=image_token_id, **fields)
    model = build_tiny_model(config=config)
    image_processor = MoAIImageProcessor(size={"height": 28, "width": 28})
    processor = MoAIProcessor(image_processor, tokenizer, num_image_tokens=config.num_image_tokens)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def build_recipe(checkpoint: Path | str, output_folder: Path, stage: int = 1, **overrides: Any) -> dict[str, Any]:
    """A recipe of four steps on a dozen questions about synthetic scenes.

    Args:
        checkpoint: What training starts from.
        output_folder: Of the run.
        stage: 1 or 2.
        **overrides: Dotted names with ``__`` for the dots: ``optimization__num_steps=2``.
    """
    recipe: dict[str, Any] = {
        "stage": stage,
        "output_folder": str(output_folder),
        "model": {"path": str(checkpoint)},
        "train": {"lora_rank": 4},
        "optimization": {"num_steps": 4, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-3},
        "saving": {"every_steps": 2},
        "watching": {"every_steps": 1, "has_plots": False},
        "data": {"sources": [{"scenes": {"length": NUM_SAMPLES // 2, "num_questions": 2, "image_size": 64}}]},
    }
    for name, value in overrides.items():
        *parents, last = name.split("__")
        place = recipe
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return recipe


def run_in_turn(
    recipes: list[dict[str, Any]], num_processes: int = 1, before_each: Callable[[], object] = list, **environment: str
) -> str:
    """Run recipes one after the other in the same process, or processes; their output.

    Args:
        recipes: From ``build_recipe``.
        num_processes: How many train together.
        before_each: Called before each run.
        **environment: Variables; CPUs are used unless these say otherwise.
    """
    from moai.training.trainer import run_training

    def run() -> None:
        for recipe in recipes:
            before_each()
            print("the result is in", run_training(recipe).folder)

    environment = environment or {"ACCELERATE_USE_CPU": "1"}
    if num_processes > 1:
        return run_ranks(run, num_processes, **environment)
    process = ForkedProcess(run, **environment)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def learned(line: dict[str, Any]) -> dict[str, Any]:
    """What a log line says about learning, without times."""
    return {name: value for name, value in line.items() if not name.endswith("_s")}


def break_at(whole: Path, broken: Path, step: int, last: int) -> Path:
    """Copy a finished run as a kill after a step leaves it: no result, newer checkpoints never written."""
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "final")
    for later in range(step + 1, last + 1):
        shutil.rmtree(broken / "checkpoints" / f"step-{later:08d}")
    return broken


def files_of(folder: Path) -> dict[str, bytes]:
    """What a folder's files of weights hold, by name."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.safetensors")}
