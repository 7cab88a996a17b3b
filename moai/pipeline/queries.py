"""One question, or conversation, about images on its way through the pipeline: pairing, checks, the prompt."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from verbalizers import Scene

from ..models.answering import Answering
from ..processing.image_loading import ImageLoadError, ImageSource, can_go_back, read_stream, view_image
from ..processing.sample_batching import as_list

__all__ = ["Query", "hash_image", "pair_queries"]


@dataclass(eq=False)
class Query:
    """A question about an image; or a conversation about several, or none.

    Attributes:
        index: Place in the caller's list.
        sources: The images as given, in reading order.
        question: The question as given, or messages as transformers writes them, the last one a user's: their parts
            are ``{"type": "text", "text": ...}`` and ``{"type": "image"}``, one of the latter per image.
        scenes: Findings at hand per image, or None.
        num_queries: Length of the caller's list.
        earlier: Questions and answers of the turns before a question that is text.
        images: The images, read.
        prompt: What the model made of the question.
        error: Why it cannot be answered; names the place where there are several.
        cause: The exception behind ``error``.
    """

    index: int
    sources: Sequence[ImageSource]
    question: str | Sequence[Mapping[str, Any]]
    scenes: list[Scene | None]
    num_queries: int = 1
    earlier: tuple[tuple[str, str], ...] = ()
    images: list[Image.Image] = field(default_factory=list)
    prompt: Any = None
    error: str | None = None
    cause: Exception | None = None

    @property
    def source_keys(self) -> list[Any]:
        """Per image, equal where the same path or object is named with the same findings at hand."""
        return [
            (os.fspath(source) if isinstance(source, (str, os.PathLike)) else id(source), id(scene))
            for source, scene in zip(self.sources, self.scenes, strict=True)
        ]

    @property
    def keys(self) -> list[Any]:
        """`source_keys` and what was read: a file or an array may have changed since an earlier query."""
        return [(*key, hash_image(image)) for key, image in zip(self.source_keys, self.images, strict=True)]

    @property
    def name(self) -> str:
        """Name of this query in messages: its index, and its path where it has one."""
        path = self.sources[0] if len(self.sources) == 1 else None
        if not isinstance(path, (str, os.PathLike)):
            path = getattr(path, "filename" if isinstance(path, Image.Image) else "name", None)
        return f"item {self.index}" + (f" ({os.fspath(path)})" if isinstance(path, (str, os.PathLike)) else "")

    def fail(self, error: Exception) -> None:
        """Record why there will be no answer."""
        self.cause = error
        self.error = f"{self.name}: {error}" if self.num_queries > 1 else str(error)

    def load(self, max_pixels: int, loaded: Mapping[Any, Image.Image] | None = None) -> None:
        """Load the images and check that given scenes belong to them.

        Args:
            max_pixels: Greatest size of an image.
            loaded: Images by source key that have just been read for another query.

        Raises:
            ValueError: An image cannot be read, or a scene is none or of another size.
        """
        loaded = loaded or {}
        pairs = zip(self.source_keys, self.sources, strict=True)
        self.images = [loaded[key] if key in loaded else view_image(source, max_pixels) for key, source in pairs]
        for scene, image in zip(self.scenes, self.images, strict=True):
            _check_scene(scene, image)

    def release(self) -> None:
        """Drop images and prompt: a long list of images must not fill the memory."""
        self.images, self.prompt = [], None

    def prepare(self, answering: Answering, max_new_tokens: int) -> None:
        """Make the prompt and check that it fits the model's context.

        Raises:
            ValueError: The question is empty, no text, or too long; the message has both numbers.
        """
        if not isinstance(self.question, str) and isinstance(self.question, Sequence):
            self.prompt = answering.prepare_conversation(self.images, self.question, max_new_tokens)
            return
        if not isinstance(self.question, str) or not self.question.strip():
            got = "an empty one" if isinstance(self.question, str) else type(self.question).__name__
            raise ValueError(f"expected a question, got {got}. Ask something, for example 'What is this?'.")
        self.prompt = answering.prepare(self.images[0], self.question, max_new_tokens, self.earlier)


def hash_image(image: Image.Image) -> tuple[int, int, bytes]:
    """Equal for images of the same pixels: width, height, and a digest."""
    return *image.size, hashlib.sha256(image.tobytes()).digest()


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
    earlier: Sequence[Sequence[tuple[str, str]]] | None = None,
) -> list[Query]:
    """Pair images, questions and scenes; a single one goes with all of the others.

    Generators are read to their end. A file object that cannot go back (a pipe, a download) is read here, once.

    Args:
        images: One or several.
        questions: One or several.
        scenes: None, or one per image.
        earlier: None, or the turns before each question.

    Raises:
        ValueError: The numbers do not fit, or there is nothing.
    """
    given, asked = as_list(images), as_list(questions)
    if not given or not asked:
        raise ValueError(
            f"expected images and questions, got {len(given)} and {len(asked)}. Pass at least one of each."
        )
    held: dict[int, Any] = {}
    given = [held[id(image)] if id(image) in held else held.setdefault(id(image), _hold(image)) for image in given]
    found = [scenes] * len(given) if scenes is None or isinstance(scenes, Scene) else as_list(scenes)
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
    turns = [()] * len(asked) if earlier is None else [tuple(each) for each in earlier]
    if len(turns) != len(asked):
        raise ValueError(f"expected the earlier turns of {len(asked)} questions, got those of {len(turns)}.")
    rows = zip(given, asked, found, turns, strict=True)
    return [
        Query(index, [image], question, [scene], len(asked), before)
        for index, (image, question, scene, before) in enumerate(rows)
    ]


def _hold(image: ImageSource) -> ImageSource:
    """The image as given, or the content of a file object that can be read but once."""
    if not hasattr(image, "read") or can_go_back(image):
        return image
    try:
        return read_stream(image)
    except ImageLoadError:
        return image  # its own query says why
