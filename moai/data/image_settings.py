"""Settings of images to learn from before there are questions: with captions, or without.

As YAML::

    sources:
      - path: data/captions.jsonl       # rows of {"image": path, "caption": text or list of texts}
        image_folder: data/images
      - scenes: {length: 20000, image_size: 96}
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StrictInt

from moai.settings import Location, settings

from .training_settings import SceneSource

__all__ = ["ImageDataSettings", "ImageSourceSettings"]


@settings
class ImageSourceSettings:
    """One source of images.

    Attributes:
        path: A folder of images (without captions), `.jsonl` / `.json` rows, Parquet, or a folder that `datasets`'
            save_to_disk wrote.
        scenes: Instead of `path`: synthetic scenes; the caption names what is there and how it stands together.
        image_folder: Where relative image paths of rows begin; None = beside the file.
        split: Split of a `datasets` folder that has several.
        column: Column of the images in a table; None = the only one that holds images.
        caption: Key of the caption in a row; a row without it that holds a conversation gives its first answer.
        limit: Use only the first rows, this many; None = all.
    """

    path: Location | None = None
    scenes: SceneSource | None = None
    image_folder: Location | None = None
    split: str | None = None
    column: str | None = None
    caption: str = "caption"
    limit: Annotated[StrictInt, Field(ge=1)] | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.scenes is None):
            raise ValueError("a source needs exactly one of `path` and `scenes`. Name a file, or describe scenes.")
        for name in ("unrelated_share", "blank_share"):
            if self.scenes is not None and getattr(self.scenes, name):
                raise ValueError(f"`{name}` is for questions, got it for images: nothing is asked. Leave it out.")


@settings
class ImageDataSettings:
    """Settings of all images.

    Attributes:
        sources: Where they come from; their order is the order of the dataset.
        max_bad_rows: How many rows without a readable image or a caption are skipped before it is an error.
    """

    sources: tuple[ImageSourceSettings, ...]
    max_bad_rows: Annotated[StrictInt, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("expected at least one source of images, got none. Name a file under `sources`.")
