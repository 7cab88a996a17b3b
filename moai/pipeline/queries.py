"""One image with one question on its way through the pipeline: pairing, checks, the prompt."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from verbalizers import Scene

from ..models.moai.configuration_moai import MoAIConfig
from ..processing.image_loading import ImageSource, load_image
from ..processing.processing_moai import MoAIProcessor

__all__ = ["Query", "pair_queries", "select_routing"]


@dataclass(eq=False)
class Query:
    """An image and a question.

    Attributes:
        index: Place in the caller's list.
        source: The image as given.
        question: The question as given.
        scene: Findings at hand, or None.
        num_queries: Length of the caller's list.
        image: The image, read.
        prompt: The prompt, built.
        error: Why it cannot be answered; names the place where there are several.
        cause: The exception behind ``error``.
    """

    index: int
    source: ImageSource
    question: str
    scene: Scene | None
    num_queries: int
    image: Image.Image | None = None
    prompt: str | None = None
    error: str | None = None
    cause: Exception | None = None

    @property
    def key(self) -> Any:
        """Equal for queries about the same image (path or object) with the same findings at hand."""
        if isinstance(self.source, (str, os.PathLike)):
            return os.fspath(self.source), id(self.scene)
        return id(self.source), id(self.scene)

    @property
    def name(self) -> str:
        """Name of this query in messages: its index, and its path where it has one."""
        path = f" ({os.fspath(self.source)})" if isinstance(self.source, (str, os.PathLike)) else ""
        return f"item {self.index}{path}"

    def fail(self, error: Exception) -> None:
        """Record why there will be no answer."""
        self.cause = error
        self.error = f"{self.name}: {error}" if self.num_queries > 1 else str(error)

    def load(self, max_pixels: int) -> None:
        """Load the image and check that a given scene belongs to it.

        Raises:
            ValueError: The image cannot be read, or the scene is none or of another size.
        """
        self.image = load_image(self.source, max_pixels)
        _check_scene(self.scene, self.image)

    def release(self) -> None:
        """Drop image and prompt: a long list of images must not fill the memory."""
        self.image = self.prompt = None

    def build_prompt(self, processor: MoAIProcessor, config: MoAIConfig, max_new_tokens: int) -> None:
        """Put the question, as data, into the chat template and check that it fits the model's context.

        Raises:
            ValueError: The question is empty, no text, or too long; the message has both numbers.
        """
        if not isinstance(self.question, str) or not self.question.strip():
            got = "an empty one" if isinstance(self.question, str) else type(self.question).__name__
            raise ValueError(f"expected a question, got {got}. Ask something, for example 'What is this?'.")
        self.prompt = processor.encoder.encode_prompt(processor.build_prompts(self.question)[0])
        length = len(processor.encoder.encode_sample(self.prompt)["input_ids"])
        limit = count_readable_tokens(processor, config, max_new_tokens)
        if limit is not None and length > limit:
            raise ValueError(
                f"expected a prompt of at most {limit} tokens (image included, {max_new_tokens} kept for the answer),"
                f" got {length} for a question of {len(self.question.split())} words. Shorten the question."
            )


def count_readable_tokens(processor: MoAIProcessor, config: MoAIConfig, max_new_tokens: int) -> int | None:
    """Longest prompt in tokens that leaves room for the answer; None = no known bound."""
    longest = config.max_positions
    bounds = [processor.max_length, None if longest is None else longest - max_new_tokens]
    known = [bound for bound in bounds if bound is not None]
    return min(known) if known else None


def _check_scene(scene: Scene | None, image: Image.Image) -> None:
    """Check that a given scene describes the image."""
    if scene is None:
        return
    if not isinstance(scene, Scene):
        raise ValueError(
            f"expected a verbalizers.Scene, got {type(scene).__name__}. Build one with Scene.from_dict(...)."
        )
    image_size_hw = (image.height, image.width)
    if tuple(scene.image_size_hw) != image_size_hw:
        raise ValueError(
            f"expected a scene of the image's height and width {image_size_hw} (EXIF orientation applied), got one "
            f"of {tuple(scene.image_size_hw)}. Pass the scene that was made from this image."
        )


def pair_queries(
    images: ImageSource | Sequence[ImageSource],
    questions: str | Sequence[str],
    scenes: Scene | Sequence[Scene | None] | None = None,
) -> list[Query]:
    """Pair images, questions and scenes; a single one goes with all of the others.

    Raises:
        ValueError: The numbers do not fit, or there is nothing.
    """
    given = list(images) if isinstance(images, (list, tuple)) else [images]
    asked = list(questions) if isinstance(questions, (list, tuple)) else [questions]
    if not given or not asked:
        raise ValueError(
            f"expected images and questions, got {len(given)} and {len(asked)}. Pass at least one of each."
        )
    found = list(scenes) if isinstance(scenes, (list, tuple)) else [scenes] * len(given)
    if isinstance(scenes, Scene) and len(given) != 1:
        raise ValueError(f"expected one scene per image ({len(given)}), got a single one. Pass a list; None = none.")
    if len(found) != len(given):
        raise ValueError(f"expected one scene per image ({len(given)}), got {len(found)}. None stands for none.")
    if len(given) == 1:
        given, found = given * len(asked), found * len(asked)
    elif len(asked) == 1:
        asked = asked * len(given)
    if len(given) != len(asked):
        raise ValueError(
            f"expected as many images as questions, or one of either, got {len(given)} images and {len(asked)} "
            "questions. Repeat the image for each of its questions."
        )
    rows = zip(given, asked, found, strict=True)
    return [Query(index, *row, num_queries=len(asked)) for index, row in enumerate(rows)]


def select_routing(routing: Any, indices: list[int], num_queries: int) -> Any:
    """The routing of some queries: weights given per query ``(B, M, 2, 3)`` lose the other rows.

    Raises:
        ValueError: There are neither one nor ``num_queries`` rows.
    """
    if isinstance(routing, (list, tuple)):
        routing = torch.tensor(routing, dtype=torch.float32)
    if not isinstance(routing, torch.Tensor) or routing.dim() != 4 or routing.shape[0] == 1:
        return routing
    if routing.shape[0] != num_queries:
        raise ValueError(
            f"expected routing weights for each of the {num_queries} questions, got {routing.shape[0]} rows. "
            "Pass (M, 2, 3) for the same weights everywhere."
        )
    return routing[indices]
