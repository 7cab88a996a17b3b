"""Overlays: drawings of what was found, saved beside the command or where the user says."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from verbalizers.core.durable_files import atomic_file

if TYPE_CHECKING:
    from verbalizers import Scene

    from ..processing.image_loading import ImageSource

__all__ = ["IMAGE_FORMATS", "Overlays", "check_image_out"]

IMAGE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF"}


def check_image_out(path: Path, inputs: Sequence[str | Path], option: str = "--image-out") -> None:
    """Check where an image will be saved, before anything is loaded.

    Args:
        path: Of the image.
        inputs: Files that the command reads.
        option: That named it.

    Raises:
        ValueError: It is no image file, would replace an input, or cannot be saved.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"expected a regular file for {option}, got {str(path)!r}. Name another.")
    if path.suffix.lower() not in IMAGE_FORMATS:
        raise ValueError(f"expected one of {', '.join(IMAGE_FORMATS)} for {option}, got {str(path)!r}.")
    numbered = re.compile(rf"{re.escape(path.stem)}-\d+{re.escape(path.suffix)}")  # further images of an answer
    for each in inputs:
        if numbered.fullmatch(Path(each).name) and Path(each).absolute().parent == path.absolute().parent:
            raise ValueError(f"{option} {str(path)!r} might replace the input {str(each)!r}. Name another file.")
    if path.exists() and any(os.path.exists(each) and os.path.samefile(path, each) for each in inputs):
        raise ValueError(f"{option} would replace the input {str(path)!r} itself. Name another file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_open = os.access(path.parent, os.W_OK | os.X_OK)
    except OSError:
        is_open = False
    if not is_open:
        raise ValueError(f"expected a folder that can be written to for {option} {str(path)!r}. Name another file.")


@dataclass(frozen=True)
class Overlays:
    """Where the drawings of a command's images go.

    Attributes:
        images: Paths of the images.
        chosen: What the user named: a file, or for several images a folder; None = beside where the command runs.
    """

    images: Sequence[str]
    chosen: Path | None = None

    def path(self, index: int) -> Path:
        """Path of the overlay of an image by its place."""
        prefix = f"{index + 1}_" if len(self.images) > 1 else ""
        name = f"{prefix}{Path(self.images[index]).stem}_overlay.png"
        if self.chosen is None:
            return Path(name)
        if len(self.images) > 1 or self.chosen.is_dir():
            return self.chosen / name
        return self.chosen if self.chosen.suffix or self.chosen.exists() else self.chosen.with_suffix(".png")

    def check(self, others: Iterable[Path] = ()) -> None:
        """Check where overlays will be saved, before anything is loaded.

        Args:
            others: Files beside the images that the command reads.

        Raises:
            ValueError: An overlay would replace an image or another input, or cannot be saved there.
        """
        chosen, num_images = self.chosen, len(self.images)
        if chosen is not None and num_images > 1 and chosen.exists() and not chosen.is_dir():
            raise ValueError(
                f"expected a folder for the overlays of {num_images} images, got the file {str(chosen)!r}."
            )
        inputs = [*self.images, *others]
        for index in range(num_images):
            check_image_out(self.path(index), inputs, "--overlay")

    def draw(self, scene: Scene | None, index: int, image: ImageSource) -> tuple[Path | None, Exception | None]:
        """Draw a scene over its image and save it.

        Args:
            scene: What was found; None = the image could not be read.
            index: Place of the image.
            image: The image, or its path.

        Returns:
            The overlay's path, and why it could not be saved: to be raised when what was found has been shown.
        """
        if scene is None:
            return None, None
        from verbalizers import draw_scene

        from ..processing.image_loading import load_image

        path = self.path(index)
        try:
            drawing = draw_scene(scene, load_image(image))
            with atomic_file(path) as temporary:
                drawing.save(temporary, format=IMAGE_FORMATS[path.suffix.lower()])
        except (ValueError, OSError) as error:
            return None, error
        return path, None
