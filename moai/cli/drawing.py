"""``moai ask PART... --image-out FILE``: images that a model draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from verbalizers.core.durable_files import atomic_file

from .overlays import IMAGE_FORMATS

if TYPE_CHECKING:
    from ..pipeline.pipeline import Pipeline

__all__ = ["draw_image", "read_parts", "save_images"]


def read_parts(arguments: Sequence[str]) -> list[str | Path]:
    """The prompt of a drawing: what is a file is an image, all else is text.

    Raises:
        ValueError: There is nothing, or a text looks like the name of an image that is not there.
    """
    if not arguments:
        raise ValueError("expected texts and images to draw from before --image-out, got nothing. Say what to draw.")
    parts: list[str | Path] = []
    for argument in arguments:
        is_name = len(argument) < 256 and "\n" not in argument
        if is_name and Path(argument).is_file():
            parts.append(Path(argument))
        elif is_name and Path(argument).suffix.lower() in Image.registered_extensions():
            raise ValueError(
                f"expected an image or a text, got {argument!r}, a file that does not exist. Check the path."
            )
        else:
            parts.append(argument)
    return parts


def draw_image(
    pipeline: Pipeline, parts: Sequence[str | Path], path: Path, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Draw one image and save it.

    Args:
        pipeline: Of a model that draws.
        parts: From :func:`read_parts`.
        path: From :func:`check_image_out`.
        options: The model's own.

    Returns:
        What ``--json`` prints.
    """
    answer = pipeline.draw(parts, options=options)
    (saved,) = save_images(answer.parts, path)
    return {"prompt": [str(part) for part in parts], "image": str(saved)}


def save_images(parts: Sequence[str | Image.Image], path: Path, start: int = 1) -> list[Path]:
    """Save the images of an answer: the first as ``path``, further ones with their number behind the name.

    Args:
        parts: Of an answer.
        path: Of the first.
        start: Number of the first among all that the command saves.
    """
    saved: list[Path] = []
    for image in (part for part in parts if isinstance(part, Image.Image)):
        number = start + len(saved)
        place = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
        with atomic_file(place) as temporary:
            image.save(temporary, format=IMAGE_FORMATS[path.suffix.lower()])
        saved.append(place)
    return saved
