"""Samples of one file of conversations: checked once, kept packed, images read when they are needed."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from moai.data.collator import SampleCollator
from moai.data.conversation_files import ConversationRow, read_rows
from moai.data.conversations import answer_turns, count_images, parse_conversation
from moai.data.findings import FindingsReader, MissingFindingsError
from moai.data.sample_identity import fold_digests, hash_parts, hash_value, show_progress
from moai.data.samples import BadSampleError, Sample
from moai.data.training_report import DataReport, Problem
from moai.data.training_settings import DataSettings, SourceSettings
from moai.processing.image_loading import IMAGE_FORMATS, load_image
from verbalizers import Scene
from verbalizers.store.rows import hash_content
from verbalizers.store.sources import Source

__all__ = ["ConversationSamples"]

_CHECKING_THREADS = 8
_HASH_BYTES = 32
_ROWS_IN_FLIGHT = 256
# A cache's reader keeps files open for one thread.
_READING = Lock()
# An estimate this near to the limit is measured exactly.
_NEAR_LIMIT = 0.9


class ConversationSamples:
    """One source's samples.

    Rows are kept as one block of JSON bytes: a list of objects would be copied page by page into every worker process.

    Args:
        source: The file and how it is read.
        settings: What holds for all sources.
        collator: How the model reads samples: lengths and limits count.
        findings: Where verbalizations come from; None = there are none.
        report: Receives counts and problems.

    Attributes:
        name: Of the file.
        lengths: Tokens per sample.
        image_indices: int64 per sample; the same number = the same images.
        findings: As given.

    Raises:
        ValueError: The file cannot be read.
    """

    def __init__(
        self,
        source: SourceSettings,
        settings: DataSettings,
        collator: SampleCollator,
        findings: FindingsReader | None,
        report: DataReport,
    ) -> None:
        self._settings, self._collator, self.findings = settings, collator, findings
        self._max_pixels = collator.processor.max_image_pixels
        self.name = Path(source.path or "").name
        self._contents: dict[str, list[bytes]] = {}
        self._hashes: list[bytes] = []
        cache, limit = None if findings is None else findings.cache, settings.max_length
        is_bounded = cache is not None and limit is not None and collator.bounds_verbalizations
        self._long_texts = cache.list_long_texts(limit) if is_bounded else set()
        self.lengths: list[int] = []
        rows = read_rows(source.path or "", source.image_folder, source.split, source.column)
        packed, sizes, owners, turns = [], [], [], []
        looks: dict[tuple[Any, ...], int] = {}
        about: list[int] = []
        for row, messages in self._checked(islice(rows, source.limit), report):
            usable = self._usable_turns(row, messages, report)
            if not usable:
                continue
            images = [image.to_dict() for image in row.images]
            self._hashes.append(b"".join(self._contents.pop(row.place, [])))
            look = looks.setdefault(_same(row.images) or (row.place,), len(looks))
            packed.append(json.dumps([row.place, images, messages]).encode())
            sizes.append(len(packed[-1]))
            for turn, length in usable:
                owners.append(len(packed) - 1)
                turns.append(turn)
                about.append(look)
                self.lengths.append(length)
            report.num_images += len(images)
        self._packed, self._stops = b"".join(packed), np.cumsum([0, *sizes])
        self.image_indices = np.array(about, np.int64)
        self._recent: tuple[tuple[Any, ...], tuple[Any, ...]] | None = None
        self._owners, self._turns = np.array(owners, np.int64), np.array(turns, np.int32)

    def place(self, index: int) -> str:
        """File, line and turn of a sample."""
        return self._unpack(index)[0]

    def load(self, index: int) -> Sample:
        """Make one sample: its images are read and decoded.

        Raises:
            BadSampleError: An image cannot be read, or the sample is too long with its verbalization.
            MissingFindingsError: The cache lacks an image.
        """
        place, images, messages = self._unpack(index)
        turn = int(self._turns[index])
        shown = images[: count_images(messages[: turn + 1])]
        if self._recent is None or self._recent[0] != _same(shown):  # one after the other asks about the same image
            self._recent = _same(shown), self._look(shown)
        sample = Sample(place, tuple(messages[: turn + 1]), *self._recent[1], targets=(turn,))
        if (problem := self._collator.find_problem(sample, self._settings.max_length)) is not None:
            raise BadSampleError(problem)
        return sample

    def identity(self) -> dict[str, Any]:
        """Contents of rows, images and verbalizations, see :func:`moai.data.sample_identity.fold_digests`.

        Images that were not read when the rows were checked (`check_images: path`) are read now.
        """
        turns = np.split(self._turns, np.flatnonzero(np.diff(self._owners)) + 1)
        rows, texts, are_known = range(len(self._hashes)), [], True
        for row in rows:
            images, messages = self._unpack_row(row)[1:]
            texts.append(hash_value([len(images), messages, turns[row].tolist()]))
            are_known &= len(self._hashes[row]) == _HASH_BYTES * len(images)
        if not are_known:
            with ThreadPoolExecutor(_CHECKING_THREADS) as threads:
                self._hashes = list(show_progress(threads.map(self._hash_images, rows), "reading images", len(rows)))
        found = {"texts": fold_digests(texts), "images": fold_digests(self._hashes)}
        if self.findings is None or self.findings.cache is None:
            return found
        keys = [row[at : at + _HASH_BYTES].hex() for row in self._hashes for at in range(0, len(row), _HASH_BYTES)]
        said = iter(self.findings.cache.digests(keys))
        verbalizations = [hash_parts(islice(said, len(row) // _HASH_BYTES)) for row in self._hashes]
        return found | {"verbalizations": fold_digests(verbalizations)}

    def _hash_images(self, row: int) -> bytes:
        """SHA-256 of each image of a row; of nothing for one that cannot be read, which is told when it is needed."""
        hashes = b""
        for image in self._unpack_row(row)[1]:
            try:
                content = image.read()
            except ValueError:
                content = b""
            hashes += hashlib.sha256(content).digest()
        return hashes

    def _look(self, sources: list[Source]) -> tuple[tuple[Image.Image, ...], tuple[Scene | None, ...] | None]:
        """Images and what was found in them."""
        images, found = [], []
        for source in sources:
            try:
                content = source.read()
                images.append(load_image(content, self._max_pixels))
            except ValueError as error:
                raise BadSampleError(f"{_name(source)}: {error}") from error
            found.append(self._find(content, images[-1]))
        return tuple(images), None if self.findings is None else tuple(found)

    def _unpack(self, index: int) -> tuple[str, list[Source], list[dict[str, Any]]]:
        place, images, messages = self._unpack_row(self._owners[index])
        return f"{place} turn {self._turns[index] + 1}", images, messages

    def _unpack_row(self, row: int) -> tuple[str, list[Source], list[dict[str, Any]]]:
        place, images, messages = json.loads(self._packed[self._stops[row] : self._stops[row + 1]])
        return place, [Source(**fields) for fields in images], messages

    def _find(self, content: bytes, image: Image.Image) -> Scene | None:
        if self.findings is None:
            return None
        try:
            return self.findings.read(content, image).scene
        except MissingFindingsError:
            if self._settings.on_missing != "empty":
                raise
            return None

    # ------------------------------------------------------------------ checking

    def _checked(
        self, rows: Iterable[ConversationRow], report: DataReport
    ) -> Iterator[tuple[ConversationRow, list[dict[str, Any]]]]:
        """Rows whose turns and images are good; the others go to the report. Images are read by threads."""
        rows = iter(rows)
        with ThreadPoolExecutor(_CHECKING_THREADS) as threads:
            while block := list(islice(rows, _ROWS_IN_FLIGHT)):
                for row, (problem, missing) in zip(block, threads.map(self._check_images, block), strict=True):
                    report.num_rows += 1
                    messages = None if problem is not None else self._parse(row, report)
                    if problem is not None:
                        report.add(row.place, problem)
                    if messages is None:
                        continue
                    report.missing += [Problem(row.place, name) for name in missing]
                    if not (missing and report.missing_action == "skip"):
                        yield row, messages

    def _parse(self, row: ConversationRow, report: DataReport) -> list[dict[str, Any]] | None:
        try:
            messages = parse_conversation(row.value, len(row.images), self._collator.reads_documents)
            if len(row.images) > self._settings.max_images:
                limit = self._settings.max_images
                raise ValueError(f"expected at most {limit} images (`max_images`), got {len(row.images)}")
            most = self._collator.max_images
            if most is not None and len(row.images) > most:
                raise ValueError(f"expected at most {most} images, which the model looks at, got {len(row.images)}")
            return messages
        except ValueError as error:
            report.add(row.place, str(error))
            return None

    def _check_images(self, row: ConversationRow) -> tuple[str | None, list[str]]:
        """What is wrong with a row's images, and which of them the cache lacks."""
        if row.problem is not None:
            return row.problem, []
        missing = []
        wants_cache = self.findings is not None and self.findings.cache is not None
        for image in row.images[: self._settings.max_images]:
            try:
                if self._settings.check_images == "path":
                    image.check()
                    continue
                content = image.read()
                self._contents.setdefault(row.place, []).append(hashlib.sha256(content).digest())
                if self._settings.check_images == "decode":
                    load_image(content, self._max_pixels)
                else:
                    check_header(content, self._max_pixels)
                if wants_cache and not self.findings.knows(content):
                    # Either nobody verbalized it, or nobody could: only the former is mended by verbalizing once more.
                    load_image(content, self._max_pixels)
                    missing.append(_name(image))
                elif wants_cache and hash_content(content) in self._long_texts:
                    with _READING:
                        found = self.findings.read(content, np.zeros((1, 1, 3), np.uint8))
                    problem = self._collator.judge_verbalization(found.text, self._settings.max_length)
                    if problem is not None:
                        return f"{_name(image)}: {problem}", []
            except ValueError as error:
                return f"{_name(image)}: {error}", []
        return None, missing

    def _usable_turns(
        self, row: ConversationRow, messages: list[dict[str, Any]], report: DataReport
    ) -> list[tuple[int, int]]:
        """Answer turns that fit, each with its length."""
        turns = answer_turns(messages)
        limit = self._settings.max_length
        usable = []
        try:
            lengths = self._collator.estimate(messages, turns)
        except BadSampleError as error:
            report.add(row.place, str(error))
            return []
        for turn, length in zip(turns, lengths, strict=True):
            if limit is not None and length > _NEAR_LIMIT * limit:
                place = f"{row.place} turn {turn + 1}"
                try:
                    length = self._collator.measure(messages[: turn + 1])
                except ValueError as error:
                    report.add(place, str(error))
                    continue
                if length > limit:
                    wanted = f"expected at most {limit} tokens (`max_length`, or what the model reads)"
                    shown = count_images(messages[: turn + 1])
                    report.add(place, f"{wanted}, got {length}, {shown} images and the answer included")
                    continue
            usable.append((turn, length))
        return usable


def _same(images: Iterable[Source]) -> tuple[Any, ...]:
    """Where images lie: rows that ask about the same ones agree in it, whatever they call them."""
    return tuple((item.location, item.split, item.column, item.row, item.item) for item in images)


def _name(image: Source) -> str:
    return image.path or f"image {image.item} of row {image.row}"


def check_header(content: bytes, max_pixels: int) -> None:
    """Whether bytes begin as an image of a size that may be decoded."""
    Image.init()  # or Pillow knows a few formats only, and not even those in every thread
    try:
        with Image.open(io.BytesIO(content), formats=[name for name in IMAGE_FORMATS if name in Image.OPEN]) as image:
            width, height = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"expected an image, got {len(content)} bytes that are none ({error})") from error
    if width * height > max_pixels:
        raise ValueError(f"expected at most {max_pixels} pixels, got {width}x{height}")
