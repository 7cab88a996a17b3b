"""Overlays: drawings of what was found, saved beside the command or where the user says."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from verbalizers.core.durable_files import atomic_file

from .answer_settings import AnswerSettings

if TYPE_CHECKING:
    from verbalizers import Scene

__all__ = ["IMAGE_FORMATS", "check_overlays", "choose_overlay_path", "draw_overlay"]

IMAGE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF"}


def choose_overlay_path(image: str, chosen: Path | None, index: int, num_images: int) -> Path:
    """Choose the path of an image's overlay.

    Args:
        image: Path of the image.
        chosen: What the user named: a file, or for several images a folder; None = beside where the command runs.
        index: Place of the image among them.
        num_images: How many there are.
    """
    prefix = f"{index + 1}_" if num_images > 1 else ""
    name = f"{prefix}{Path(image).stem}_overlay.png"
    if chosen is None:
        return Path(name)
    if num_images > 1 or chosen.is_dir():
        return chosen / name
    return chosen if chosen.suffix or chosen.exists() else chosen.with_suffix(".png")


def check_overlays(images: Sequence[str], chosen: Path | None, others: Iterable[Path] = ()) -> None:
    """Check where overlays will be saved, before anything is loaded.

    Args:
        images: Paths of the images.
        chosen: What the user named; see :func:`choose_overlay_path`.
        others: Further files that the command reads.

    Raises:
        ValueError: An overlay would replace an image or another input, or cannot be saved there.
    """
    if chosen is not None and len(images) > 1 and chosen.exists() and not chosen.is_dir():
        raise ValueError(f"expected a folder for the overlays of {len(images)} images, got the file {str(chosen)!r}.")
    inputs = [path for path in (*images, *others) if os.path.exists(path)]
    for index, image in enumerate(images):
        path = choose_overlay_path(image, chosen, index, len(images))
        if path.exists() and not path.is_file():
            raise ValueError(f"expected a regular file for an overlay, got {str(path)!r}. Name another --overlay.")
        if path.suffix.lower() not in IMAGE_FORMATS:
            raise ValueError(f"expected one of {', '.join(IMAGE_FORMATS)} for an overlay, got {str(path)!r}.")
        if path.exists() and any(os.path.samefile(path, each) for each in inputs):
            raise ValueError(f"the overlay would replace the image {image!r} itself. Name another --overlay.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            is_open = os.access(path.parent, os.W_OK | os.X_OK)
        except OSError:
            is_open = False
        if not is_open:
            raise ValueError(f"expected a folder that can be written to for {str(path)!r}. Name another --overlay.")


def draw_overlay(
    scene: Scene | None, image: str, index: int, num_images: int, settings: AnswerSettings
) -> tuple[Path | None, Exception | None]:
    """Draw a scene over its image and save it, if that is asked for.

    Args:
        scene: What was found; None = the image could not be read.
        image: Path of the image.
        index: Place of the image among them.
        num_images: How many there are.
        settings: ``is_drawing`` and ``overlay`` count.

    Returns:
        The overlay's path, and why it could not be saved: to be raised when what was found has been shown.
    """
    if not settings.is_drawing or scene is None:
        return None, None
    from verbalizers import draw_scene

    from ..processing.image_loading import load_image

    path = choose_overlay_path(image, settings.overlay, index, num_images)
    try:
        drawing = draw_scene(scene, load_image(image))
        with atomic_file(path) as temporary:
            drawing.save(temporary, format=IMAGE_FORMATS[path.suffix.lower()])
    except (ValueError, OSError) as error:
        return None, error
    return path, None
