"""Training samples from conversations and scenes: a map-style dataset, one sample per answer of the assistant.

    from moai.data.collator import TrainingCollator
    from moai.data.training_data import DataSettings, build_training_dataset

    dataset = build_training_dataset(DataSettings(sources="train.jsonl", cache="cache"), processor)
    batch = TrainingCollator(processor)([dataset[0], dataset[1]])

A multi-turn conversation is several samples: the experts of the mixture look ahead within the prompt, so an answer must
not stand inside one (see `moai.models.moai.sample_encoding`). What came before it, answers included, is prompt.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from moai.data.conversation_samples import ConversationSamples
from moai.data.findings import FindingsReader, MissingFindingsError
from moai.data.scene_samples import SceneSamples
from moai.data.training_report import DataReport
from moai.data.training_sample import BadSampleError, TrainingSample
from moai.data.training_settings import DataSettings, SceneSource, SourceSettings
from moai.models.moai.processing_moai import MoAIProcessor

__all__ = [
    "DataReport",
    "DataSettings",
    "SceneSource",
    "SourceSettings",
    "TrainingDataset",
    "TrainingSample",
    "build_training_dataset",
]

logger = logging.getLogger(__name__)
#: How many samples in a row may turn out unreadable before the data as a whole is at fault.
_MOST_NEIGHBOURS = 64


class _Part(Protocol):
    """Samples of one source."""

    name: str
    lengths: list[int]
    pictures: np.ndarray
    findings: FindingsReader | None

    def identity(self) -> dict[str, Any]: ...

    def load(self, index: int) -> TrainingSample: ...

    def place(self, index: int) -> str: ...


class TrainingDataset(Dataset[TrainingSample]):
    """Samples of all sources, one source after the other.

    `dataset[i]` depends on `i` alone, in every process and on every run. A sample whose image turns out unreadable
    only when it is needed is replaced by the next readable one, and counts as a bad row: once per image, however many
    processes and epochs meet it.

    Args:
        parts: Samples per source.
        report: What was found while they were read.
        has_map: Whether samples carry a painted map.

    Attributes:
        lengths: Tokens of each sample (images, history and answer included), told without decoding or rendering:
            exact but for words that merge across the borders of turns.
        images: int64; samples with the same number are about the same image.
        report: Bad rows and counts. Worker processes have copies of it.
        has_map: Whether samples carry a painted map.
        has_auxiliary: Whether samples carry words of verbalizers.
        verbalizer_settings: Who found what the samples say, to be saved beside the trained model; None = nobody.
    """

    def __init__(self, parts: list[_Part], report: DataReport, has_map: bool) -> None:
        self._parts = parts
        self._stops = list(accumulate(len(part.lengths) for part in parts))
        self.report, self.has_map = report, has_map
        self.lengths: list[int] = [length for part in parts for length in part.lengths]
        numbers, start = [], 0
        for part in parts:
            numbers.append(start + part.pictures)
            start += 1 + int(part.pictures.max(initial=-1))
        self.pictures: np.ndarray = np.concatenate(numbers)
        # Images that cannot be read, in memory that worker processes share.
        self._is_bad = torch.zeros(1 + int(self.pictures.max(initial=-1)), dtype=torch.bool).share_memory_()
        self._num_bad = len(report.problems)
        readers = [part.findings for part in parts if part.findings is not None]
        self.has_auxiliary = bool(readers)
        named = [reader for reader in readers if reader.cache is not None] or readers
        self.verbalizer_settings: VerbalizerSettings | None = named[0].settings_with_map(has_map) if named else None

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> TrainingSample:
        """One sample.

        Raises:
            IndexError: No such sample.
            ValueError: Too many samples cannot be read.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"expected an index below {len(self)}, got {index}.")
        for step in range(min(len(self), _MOST_NEIGHBOURS)):
            part, local = self._locate((index + step) % len(self))
            try:
                sample = part.load(local)
            except MissingFindingsError as error:
                if self.report.missing_action != "skip":
                    raise ValueError(f"{part.place(local)}: {error}. Run `moai verbalize` once more.") from error
                logger.warning("%s: %s; another sample stands in", part.place(local), error)
            except BadSampleError as error:
                self._is_bad[self.pictures[(index + step) % len(self)]] = True
                self.report.add_late(part.place(local), str(error), self._num_bad + int(self._is_bad.sum()))
            else:
                return self._with_inputs(sample)
        raise ValueError(f"{_MOST_NEIGHBOURS} samples from number {index} on cannot be read. See the report.")

    def identity(self) -> dict[str, Any]:
        """What the samples consist of: a run that goes on must find the same. JSON-able; contents count, not names."""
        sources, verbalizers = {}, {}
        for number, part in enumerate(self._parts, start=1):
            name = f"{part.name} ({number})" if part.name in sources else part.name
            sources[name] = part.identity()
            if part.findings is not None:
                verbalizers[name] = part.findings.identity()
        return {"sources": sources, "verbalizers": verbalizers}

    def _locate(self, index: int) -> tuple[_Part, int]:
        number = int(np.searchsorted(self._stops, index, side="right"))
        return self._parts[number], index - (self._stops[number] - len(self._parts[number].lengths))

    def _with_inputs(self, sample: TrainingSample) -> TrainingSample:
        """Give every sample the same kinds of inputs: a batch has text and map in all of its rows or in none."""
        text = (sample.auxiliary_text or "") if self.has_auxiliary else None
        painted = sample.auxiliary_image
        if self.has_map and painted is None:
            painted = np.zeros((1, 1, 3), np.uint8)
        return TrainingSample(
            sample.place, sample.prompt, sample.answer, sample.images, text, painted if self.has_map else None
        )


def build_training_dataset(
    settings: DataSettings,
    processor: MoAIProcessor,
    verbalizer_settings: VerbalizerSettings | None = None,
    *,
    max_positions: int | None = None,
    report_file: Path | None = None,
) -> TrainingDataset:
    """Read and check all sources.

    Args:
        settings: What to read.
        processor: Whose prompts, lengths and limits count.
        verbalizer_settings: Who looks at images where no cache is named: those of the starting checkpoint
            (`VerbalizerSettings.load(folder)`); None = the defaults.
        max_positions: Longest sequence that the model reads (`MoAIConfig.max_positions`); None = no bound.
        report_file: Where all bad rows are listed; None = the message lists the first ones.

    Returns:
        The dataset; `report.summary()` says what was read.

    Raises:
        ValueError: A source cannot be read, has too many bad rows, lacks verbalizations, or nothing is left.
        ImportError: An optional package is missing; the message has the line to type.
    """
    limits = [limit for limit in (settings.max_length, processor.max_length, max_positions) if limit is not None]
    settings = replace(settings, max_length=min(limits, default=None))
    report = DataReport(settings.max_bad_rows, report_file, missing_action=settings.on_missing)
    shared = FindingsReader.from_settings(settings, verbalizer_settings)
    readers: list[FindingsReader | None] = []
    for source in settings.sources:
        readers.append(_reader_of(settings.choose_verbalizations(source), shared))
    has_map = settings.map == "always" or (
        settings.map == "auto" and any(reader is not None and reader.makes_maps() for reader in readers)
    )
    parts: list[_Part] = []
    for source, reader in zip(settings.sources, readers, strict=True):
        if source.scenes is not None:
            parts.append(SceneSamples(source, settings, processor, reader, has_map, report))
        else:
            parts.append(ConversationSamples(source, settings, processor, reader, has_map, report))
    report.close(settings.cache)
    dataset = TrainingDataset(parts, report, has_map)
    report.num_samples = len(dataset)
    if not len(dataset):
        raise ValueError(f"expected training samples, got none: {report.summary()}.")
    return dataset


def _reader_of(verbalizations: str, shared: FindingsReader) -> FindingsReader | None:
    if verbalizations == "none":
        return None
    if verbalizations == "cache":
        return shared
    return FindingsReader(
        None, shared.settings, verbalizations == "live", kinds=shared.kinds, timeout_s=shared.timeout_s
    )
