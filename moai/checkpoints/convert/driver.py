"""The way of every conversion: kinds are known by their tensors' names, a plan accounts for every key, one writer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from verbalizers.core.durable_files import atomic_folder

from ..io.tensor_folder import TensorFolder
from ..io.tensor_writing import DEFAULT_SHARD_BYTES, ShardedWriter
from .model_card import write_card
from .report import ConversionReport

__all__ = [
    "ConversionKind",
    "Converted",
    "find_family",
    "load_fitting_tokenizer",
]

Tensors = Iterable[tuple[str, torch.Tensor]]


@dataclass(frozen=True)
class ConversionKind:
    """A kind of checkpoint: how it is recognised and converted.

    Attributes:
        name: For example ``official-moai``.
        recognises: Tells from the tensors' names whether they are of this kind.
        convert: ``convert(weights, source, dtype, **settings) -> Converted``, of the opened weights, their place and
            the dtype that is asked for or None. It raises a ValueError where a key is unknown, missing or of the wrong
            shape, or a part cannot be had.
        own_settings: Settings that not every kind has.
        subfolder: Where in a folder the weights may lie.
    """

    name: str
    recognises: Callable[[Mapping[str, Any]], bool]
    convert: Callable[..., Converted]
    own_settings: tuple[str, ...] = ()
    subfolder: str = ""

    def open(self, source: Path) -> TensorFolder:
        """The weights of a source.

        Raises:
            ValueError: There are none, or they cannot be read safely.
        """
        inner = source / self.subfolder
        return TensorFolder(inner if self.subfolder and inner.is_dir() else source)

    def run(
        self,
        weights: TensorFolder,
        source: Path,
        output: Path,
        *,
        dtype: torch.dtype | None = None,
        force: bool = False,
        origin: str | None = None,
        shard_bytes: int = DEFAULT_SHARD_BYTES,
        **settings: Any,
    ) -> ConversionReport:
        """Convert and write; the folder appears only when everything succeeded.

        Args:
            weights: From :meth:`open`.
            source: What is converted.
            output: Folder to create.
            dtype: Of the weights written; None = the source's.
            force: Replace an existing output.
            origin: What report and card call the source; None = its path in the report.
            shard_bytes: Size of a weight file; memory needed is about as much.
            **settings: Of the kind.
        """
        made = self.convert(weights, source, dtype, **settings)
        made.config.dtype, dtype = made.stored, made.dtype
        families: Counter[str] = Counter()
        with atomic_folder(output, force=force) as folder:
            extra = made.finish(folder)  # the quick part: what is wrong fails early
            writer = ShardedWriter(folder, shard_bytes)
            for name, values in made.tensors:
                writer.add(name, values.to(dtype) if dtype is not None and values.is_floating_point() else values)
                families[made.family(name)] += values.numel()
            files = writer.finish()
            for part in (made.config, *made.saved):
                part.save_pretrained(folder)
            if made.licences:
                notes = [note for note in made.notes if note not in made.licences]
                write_card(folder, origin or source.name, notes, made.name, made.licences)
        return ConversionReport(
            kind=self.name,
            source=origin or source,
            output=output,
            num_source_tensors=len(weights.tensors),
            num_tensors=writer.num_tensors,
            num_parameters=writer.num_parameters,
            num_bytes=writer.num_bytes,
            dtype=str(made.stored).removeprefix("torch."),
            families=dict(families),
            files=(*files, *extra),
            sizes=dict(made.sizes),
            notes=tuple(made.notes),
        )


@dataclass
class Converted:
    """What a model's own converter makes of a source.

    Attributes:
        name: Of the model, for the card.
        config: Its configuration.
        tensors: By our names, one after the other.
        licences: Sentences for the card; without any there is none.
        notes: What is worth knowing, one sentence each.
        sizes: The sizes that were found, by name.
        stored: Dtype that the configuration names.
        dtype: Floats are written in it; None = each in its own.
        saved: What else is written with ``save_pretrained``: processor, generation settings, verbalizers.
        finish: Writes further files into the folder and returns those of weights.
        family: Part of the model that a tensor belongs to.
    """

    name: str
    config: PreTrainedConfig
    tensors: Tensors
    licences: tuple[str, ...]
    notes: list[str]
    sizes: Mapping[str, Any]
    stored: torch.dtype
    dtype: torch.dtype | None
    saved: Sequence[Any] = ()
    finish: Callable[[Path], list[str]] = field(default=lambda folder: [])
    family: Callable[[str], str] = field(default=lambda name: find_family(name))


def find_family(name: str) -> str:
    """Part of the model that a tensor belongs to."""
    parts = name.split(".")
    return parts[1] if parts[0] == "model" else parts[0]


def load_fitting_tokenizer(
    place: Path, given: str | Path | None, default: str | None, vocab_size: int, padding: int | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer beside a source's weights, or another one that fits.

    Args:
        place: Folder of the weights.
        given: Folder or hub name; None = that beside the weights, else ``default``.
        default: Hub name; None = nobody knows one.
        vocab_size: Most tokens.
        padding: Id of the padding token; None = any.

    Raises:
        ValueError: There is none, or it does not fit.
    """
    if given is None:
        has_own = any((place / name).is_file() for name in ("tokenizer.json", "vocab.json"))
        given = place if has_own else default
    if given is None:
        raise ValueError(f"expected the text part's tokenizer beside the weights in {place}, got none. Copy it there.")
    try:
        loaded = AutoTokenizer.from_pretrained(given)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"expected the text part's tokenizer from {given}, got none: {str(error).splitlines()[0]} Copy its "
            f"tokenizer.json and tokenizer_config.json into {place}."
        ) from error
    if len(loaded) > vocab_size or padding not in (None, loaded.pad_token_id):
        wanted = "" if padding is None else f" with padding {padding}"
        raise ValueError(
            f"expected a tokenizer of at most {vocab_size} tokens{wanted}, got {len(loaded)} and {loaded.pad_token_id} "
            f"in {given}."
        )
    return loaded
