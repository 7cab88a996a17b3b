"""A whole tiny checkpoint on disk, images, and verbalizers whose behaviour a test chooses."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from builders import build_tiny_config, build_tiny_model
from PIL import Image

from moai import InternLM2Tokenizer, MoAIProcessor
from moai.models.moai.image_processing_moai import MoAIImageProcessor
from recipes.nano.tokenization_training import train_tokenizer
from verbalizers import Detections, Scene, Segments, TextLines, Verbalizer

VOCAB_SIZE = 384
TEXTS = (
    "The image includes bounding box coordinates and their objects: [0.10, 0.20, 0.30, 0.40] dog, and [..] cat.",
    "The image includes relationships between objects: dog is on grass, and person is holding cup.",
    "The image includes text descriptions: STOP, and OPEN.",
    "AI assistant should give helpful and detailed answers to user after fully understanding an image.",
    "What is written on the sign? How many dogs are there? Where is the cat? There are two. It is on the left.",
)


@lru_cache(maxsize=1)
def _tokenizer() -> InternLM2Tokenizer:
    with TemporaryDirectory() as folder:
        return train_tokenizer(TEXTS, VOCAB_SIZE, Path(folder))


def write_tiny_checkpoint(folder: Path, verbalizer_settings: Any = None, max_position_embeddings: int = 2048) -> Path:
    """Save a loud tiny model with processor and tokenizer, as ``moai ask --model`` reads it.

    Args:
        folder: Receives the files.
        verbalizer_settings: Content of ``verbalizers.json``; None = no such file.
        max_position_embeddings: How much the decoder reads.
    """
    tokenizer = _tokenizer()
    text = {
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": max_position_embeddings,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    model = build_tiny_model(config=build_tiny_config(text=text, image_token_id=image_token_id))
    with torch.no_grad():  # a larger spread of logits: greedy choices that no rounding turns over
        model.lm_head.weight.mul_(8)
    size = model.config.vision_config.image_size
    image_processor = MoAIImageProcessor(size={"height": size, "width": size})
    processor = MoAIProcessor(image_processor, tokenizer, num_image_tokens=model.config.num_image_tokens)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if verbalizer_settings is not None:
        (folder / "verbalizers.json").write_text(json.dumps(verbalizer_settings))
    return folder


def draw_image(seed: int = 0, height: int = 60, width: int = 80) -> Image.Image:
    """A seeded image of coloured noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def build_scene(height: int = 60, width: int = 80, word: str = "STOP") -> Scene:
    """A scene with two segments, a detection and a line of text."""
    panoptic_map = np.zeros((height, width), dtype=np.int32)
    panoptic_map[: height // 2], panoptic_map[height // 2 :] = 1, 2
    return Scene(
        (height, width),
        segments=Segments(panoptic_map, (1, 2), ("sky-other-merged", "grass"), (0.9, 0.8)),
        detections=Detections([[10, 10, 30, 30]], ("dog",), [0.9], (height, width)),
        text_lines=TextLines([[[5, 5], [40, 5], [40, 20], [5, 20]]], (word,), [0.99]),
    )


def build_text_lines(*texts: str) -> TextLines:
    """Lines of text at the top left corner, read with confidence 0.99."""
    quads = np.array([[[0, 0], [9, 0], [9, 9], [0, 9]]] * len(texts), dtype=np.float32).reshape(-1, 4, 2)
    return TextLines(quads, texts, [0.99] * len(texts))


class ScriptedVerbalizer(Verbalizer):
    """Does to each image what a test says, and counts the images.

    Args:
        kind: What it pretends to find.
        find: Image ``(H, W, 3)`` -> finding; it may raise or hang.
    """

    backend = "scripted"

    def __init__(self, kind: str, find: Callable[[np.ndarray], Any]) -> None:
        self.kind, self._find, self._num_images = kind, find, 0

    @property
    def num_images(self) -> int:
        """Images looked at so far."""
        return self._num_images

    def predict(self, images: Sequence[np.ndarray]) -> list[Any]:
        """Look at each image as told."""
        self._num_images += len(images)
        return [self._find(image) for image in images]


class HangingVerbalizer(Verbalizer):
    """Does not answer before it is released."""

    kind, backend = "ocr", "hanging"

    def __init__(self) -> None:
        self._release = threading.Event()

    def release(self) -> None:
        """Let the waiting thread end."""
        self._release.set()

    def predict(self, images: Sequence[np.ndarray]) -> list[Any]:
        """Wait until released."""
        self._release.wait(60)
        return [None] * len(images)
