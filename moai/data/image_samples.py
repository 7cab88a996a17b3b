"""Images with or without captions: a map-style dataset of files' rows and synthetic scenes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from moai.data.conversation_files import read_rows
from moai.data.conversation_samples import check_header
from moai.data.image_settings import ImageDataSettings, ImageSourceSettings
from moai.data.sample_identity import fold_digests, hash_parts, hash_value, show_progress
from moai.processing.image_loading import DEFAULT_MAX_PIXELS, load_image
from moai.scenes.scenes import Scenes, SceneSample
from verbalizers.core.structures import Scene
from verbalizers.store.sources import BadSource, Source, read_sources

__all__ = ["CaptionedImage", "ImageDataset", "caption_scene"]

_ANSWERING = ("assistant", "gpt")
_HASHED_SCENES = 8


@dataclass(frozen=True)
class CaptionedImage:
    """An image.

    Attributes:
        image: RGB.
        captions: What is said of it; none where captions were not asked for.
    """

    image: Image.Image
    captions: tuple[str, ...]


def caption_scene(truth: Scene) -> str:
    """A caption of a synthetic scene: relations, then what stands in none of them, then the words on signs.

    Args:
        truth: What there is.
    """
    said, named = [], set()
    if (found := truth.relations) is not None:
        names = found.object_names
        for subject, predicate, thing in zip(
            found.subject_indices, found.predicates, found.object_indices, strict=True
        ):
            said.append(f"{names[subject]} {predicate} {names[thing]}")
            named |= {names[subject], names[thing]}
    found = [names for part in (truth.segments, truth.detections) if part is not None for names in part.class_names]
    said += [name for name in dict.fromkeys(found) if name not in named]
    if truth.text_lines is not None:
        said += truth.text_lines.texts
    return ", ".join(said)


class ImageDataset:
    """Images of all sources, one source after the other.

    Args:
        settings: Where they come from.
        has_captions: Whether captions are wanted; a row without one is a bad row then.

    Raises:
        ValueError: More rows are bad than allowed, or none is left.
    """

    def __init__(self, settings: ImageDataSettings, has_captions: bool) -> None:
        self.has_captions = has_captions
        self._files: list[tuple[str, Source, tuple[str, ...]]] = []
        self._streams: list[tuple[Scenes, int, int]] = []  # scenes, first, count
        self._hashes: list[bytes] = []
        self.problems: list[str] = []
        for source in settings.sources:
            if source.scenes is not None:
                self._add_scenes(source)
            else:
                for place, found in show_progress(list(_read(source, has_captions)), "reading images"):
                    self._add_file(place, found)
        if len(self.problems) > settings.max_bad_rows:
            raise ValueError(
                f"expected images{' with captions' * has_captions}, got {len(self.problems)} bad rows "
                f"(`max_bad_rows` is {settings.max_bad_rows}). The first: {self.problems[0]}"
            )
        if not len(self):
            raise ValueError("expected images to learn from, got none. Look at `sources`.")

    def _add_scenes(self, source: ImageSourceSettings) -> None:
        scenes = source.scenes
        stream = scenes.stream(num_questions=1)
        self._streams.append((stream, scenes.start, min(scenes.length, source.limit or scenes.length)))

    def _add_file(self, place: str, found: tuple[Source, tuple[str, ...]] | str) -> None:
        try:
            if isinstance(found, str):
                raise ValueError(found)
            image, captions = found
            content = image.read()
            check_header(content, DEFAULT_MAX_PIXELS)
        except ValueError as error:
            self.problems.append(f"{place}: {error}")
            return
        self._files.append((place, image, captions))
        self._hashes.append(hash_parts([content, *(caption.encode() for caption in captions)]))

    def __len__(self) -> int:
        return len(self._files) + sum(count for _, _, count in self._streams)

    def identity(self) -> dict[str, Any]:
        """What the images and captions are: of files their contents, of scenes the first ones' truth."""
        scenes = [
            hash_value([caption_scene(stream[first + place].truth) for place in range(min(count, _HASHED_SCENES))])
            for stream, first, count in self._streams
        ]
        counts = [count for _, _, count in self._streams]
        return {"rows": fold_digests(self._hashes), "scenes": fold_digests(scenes), "num_scenes": counts}

    def _scene(self, index: int) -> tuple[str, SceneSample]:
        for stream, first, count in self._streams:
            if index < count:
                return f"scenes {stream.split}/{stream.seed}:{first + index}", stream[first + index]
            index -= count
        raise IndexError(f"expected an index below {len(self)}.")

    def __getitem__(self, index: int) -> CaptionedImage:
        """An image with its captions.

        Raises:
            IndexError: No such image.
            ValueError: It cannot be decoded.
        """
        if index >= len(self._files):
            _, scene = self._scene(index - len(self._files))
            captions = (caption_scene(scene.truth),) if self.has_captions else ()
            return CaptionedImage(Image.fromarray(scene.image), captions)
        place, source, captions = self._files[index]
        try:
            return CaptionedImage(load_image(source.read()), captions)
        except ValueError as error:
            raise ValueError(f"{place}: {error} Take the row out, in another `output_folder`.") from error


def _read(
    source: ImageSourceSettings, has_captions: bool
) -> Iterator[tuple[str, tuple[Source, tuple[str, ...]] | str]]:
    """Place and image with captions of each row, or what is wrong with it."""
    number = 0
    if has_captions:
        for row in read_rows(source.path, source.image_folder, source.split, source.column):
            yield row.place, row.problem or _find_captions(row.value, row.images, source.caption)
            number += 1
            if number == source.limit:
                return
        return
    for found in read_sources(source.path, source.image_folder, source.column)[: source.limit]:
        yield found.path or found.id, found.reason if isinstance(found, BadSource) else (found, ())


def _find_captions(row: Any, images: tuple[Source, ...], key: str) -> tuple[Source, tuple[str, ...]] | str:
    if len(images) != 1:
        return f"expected one image, got {len(images)}."
    said = row.get(key) if isinstance(row, Mapping) else None
    if said is None and isinstance(row, Mapping):
        said = _first_answer(row.get("conversations") or row.get("messages"))
    texts = [said] if isinstance(said, str) else said
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts) or not texts:
        return f"expected a text, or several, under {key!r} (`caption`), got {str(said)[:80]!r}."
    return images[0], tuple(texts)


def _first_answer(turns: Any) -> str | None:
    """The first answer of a conversation in LLaVA's form or in messages."""
    for turn in turns if isinstance(turns, list) else ():
        if isinstance(turn, Mapping) and (turn.get("from") or turn.get("role")) in _ANSWERING:
            said = turn.get("value", turn.get("content"))
            return said if isinstance(said, str) else None
    return None
