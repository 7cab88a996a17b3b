"""Training samples from conversations and scenes: a map-style dataset, one sample per answer of the assistant.

    from moai.data.training_data import DataSettings, build_training_dataset
    from moai.models.moai.collator_moai import MoAICollator

    dataset = build_training_dataset(DataSettings(sources="train.jsonl", cache="cache"), MoAICollator(processor))
    batch = dataset.collator([dataset[0], dataset[1]])

A multi-turn conversation is several samples: what came before an answer, earlier answers included, is its prompt. (The
experts of MoAI look ahead within the prompt, so an answer must not stand inside one.)
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from moai.data.collator import SampleCollator
from moai.data.conversation_samples import ConversationSamples
from moai.data.findings import FindingsReader, MissingFindingsError
from moai.data.samples import BadSampleError, Sample
from moai.data.scene_samples import SceneSamples
from moai.data.training_report import DataReport
from moai.data.training_settings import DataSettings, SceneSource, SourceSettings

__all__ = [
    "DataReport",
    "DataSettings",
    "Sample",
    "SceneSource",
    "SourceSettings",
    "TrainingDataset",
    "build_training_dataset",
]

logger = logging.getLogger(__name__)
#: How many samples in a row may turn out unreadable before the data as a whole is at fault.
_MOST_NEIGHBOURS = 64


class _Part(Protocol):
    """Samples of one source."""

    name: str
    lengths: list[int]
    image_indices: np.ndarray
    findings: FindingsReader | None

    def identity(self) -> dict[str, Any]: ...

    def load(self, index: int) -> Sample: ...

    def place(self, index: int) -> str: ...


class TrainingDataset(Dataset[Sample]):
    """Samples of all sources, one source after the other.

    `dataset[i]` depends on `i` alone, in every process and on every run. A sample whose image turns out unreadable
    only when it is needed is replaced by the next readable one, and counts as a bad row: once per image, however many
    processes and epochs meet it.

    Args:
        parts: Samples per source; a source may stand there several times.
        report: What was found while they were read.
        collator: How the model reads these samples.
        weights: How much the targets of each part's samples count in the loss; None = all the same.

    Attributes:
        lengths: Tokens of each sample (images, history and answer included), told without decoding or rendering:
            exact but for words that merge across the borders of turns.
        image_indices: int64; samples with the same number are about the same image.
        report: Bad rows and counts. Worker processes have copies of it.
        collator: What makes batches of these samples.
    """

    def __init__(
        self,
        parts: list[_Part],
        report: DataReport,
        collator: SampleCollator,
        weights: Sequence[float] | None = None,
    ) -> None:
        self._parts, self._weights = parts, weights or [1.0] * len(parts)
        self._stops = list(accumulate(len(part.lengths) for part in parts))
        self.report = report
        self.lengths: list[int] = [length for part in parts for length in part.lengths]
        starts, start = {}, 0
        for part in parts:
            if part not in starts:
                starts[part] = start
                start += 1 + int(part.image_indices.max(initial=-1))
        self.image_indices: np.ndarray = np.concatenate([starts[part] + part.image_indices for part in parts])
        # Images that cannot be read, in memory that worker processes share.
        self._is_bad = torch.zeros(1 + int(self.image_indices.max(initial=-1)), dtype=torch.bool).share_memory_()
        self._num_bad = len(report.problems)
        self.collator = collator

    @property
    def verbalizer_settings(self) -> VerbalizerSettings | None:
        """Who found what the samples say, to be saved beside the trained model; None = nobody."""
        return self.collator.settings

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Sample:
        """One sample.

        Raises:
            IndexError: No such sample.
            ValueError: Too many samples cannot be read.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"expected an index below {len(self)}, got {index}.")
        for step in range(min(len(self), _MOST_NEIGHBOURS)):
            part, local, weight = self._locate((index + step) % len(self))
            try:
                sample = part.load(local)
            except MissingFindingsError as error:
                if self.report.missing_action != "skip":
                    raise ValueError(f"{part.place(local)}: {error}. Run `moai verbalize` once more.") from error
                logger.warning("%s: %s; another sample stands in", part.place(local), error)
            except BadSampleError as error:
                self._is_bad[self.image_indices[(index + step) % len(self)]] = True
                self.report.add_late(part.place(local), str(error), self._num_bad + int(self._is_bad.sum()))
            else:
                return sample if weight == 1 else replace(sample, weight=weight)
        raise ValueError(f"{_MOST_NEIGHBOURS} samples from number {index} on cannot be read. See the report.")

    def identity(self) -> dict[str, Any]:
        """What the samples consist of: a run that goes on must find the same. JSON-able; contents count, not names."""
        sources, verbalizers = {}, {}
        for number, part in enumerate(dict.fromkeys(self._parts), start=1):
            name = f"{part.name} ({number})" if part.name in sources else part.name
            sources[name] = part.identity()
            if part.findings is not None:
                verbalizers[name] = part.findings.identity()
        return {"sources": sources, "verbalizers": verbalizers}

    def _locate(self, index: int) -> tuple[_Part, int, float]:
        number = int(np.searchsorted(self._stops, index, side="right"))
        part = self._parts[number]
        return part, index - (self._stops[number] - len(part.lengths)), self._weights[number]


def build_training_dataset(
    settings: DataSettings,
    collator: SampleCollator,
    verbalizer_settings: VerbalizerSettings | None = None,
    *,
    max_positions: int | None = None,
    report_file: Path | None = None,
) -> TrainingDataset:
    """Read and check all sources.

    Args:
        settings: What to read.
        collator: How the model reads samples: lengths and limits count.
        verbalizer_settings: Who looks at images where no cache is named: those of the starting checkpoint
            (`VerbalizerSettings.load(folder)`); None = the defaults.
        max_positions: Longest sequence that the model reads ; None = no bound.
        report_file: Where all bad rows are listed; None = the message lists the first ones.

    Returns:
        The dataset; `report.summary()` says what was read.

    Raises:
        ValueError: A source cannot be read, has too many bad rows, lacks verbalizations, or nothing is left.
        ImportError: An optional package is missing; the message has the line to type.
    """
    of_processor = getattr(collator.processor, "max_length", None)
    limits = [limit for limit in (settings.max_length, of_processor, max_positions) if limit is not None]
    settings = replace(settings, max_length=min(limits, default=None))
    report = DataReport(settings.max_bad_rows, report_file, missing_action=settings.on_missing)
    shared = FindingsReader.from_settings(settings, verbalizer_settings)
    readers: list[FindingsReader | None] = []
    for source in settings.sources:
        readers.append(_reader_of(settings.choose_verbalizations(source), shared))
    if settings.map == "always" and not collator.reads_maps:
        raise ValueError("expected `map: auto` or never, got always: the model looks at no painted map. Leave it out.")
    makes_maps = any(reader is not None and reader.makes_maps() for reader in readers)
    has_map = collator.reads_maps and (settings.map == "always" or (settings.map == "auto" and makes_maps))
    is_said = any(reader is not None for reader in readers)
    collator = collator.replace(
        settings=shared.settings_with_map(has_map) if is_said else None,
        kinds=shared.kinds,
        chat_template=settings.chat_template,
    )
    parts: list[_Part] = []
    weights: list[float] = []
    for source, reader in zip(settings.sources, readers, strict=True):
        made = SceneSamples if source.scenes is not None else ConversationSamples
        parts += [made(source, settings, collator, reader, report)] * source.repeats
        weights += [source.weight] * source.repeats
    report.close(settings.cache)
    dataset = TrainingDataset(parts, report, collator, weights)
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
