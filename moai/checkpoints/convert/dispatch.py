"""Conversion of any kind of checkpoint: finds its kind and calls the converter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from verbalizers.core.durable_files import check_output

from ...models.registry import MODEL_SPECS, load_named
from ..io.hub_download import download_checkpoint
from ..io.lookup import is_hub_name
from ..io.tensor_folder import TORCH_SUFFIXES, TensorFolder
from ..io.tensor_writing import DEFAULT_SHARD_BYTES
from .driver import ConversionKind
from .published_verbalizers import PublishedVerbalizers
from .report import ConversionReport


def load_kinds() -> tuple[ConversionKind, ...]:
    """The kinds that can be converted: every model's own, and PSGTR, a verbalizer."""
    converters = [spec.converter for spec in MODEL_SPECS.values() if spec.converter is not None]
    return tuple(load_named(name) for name in (*converters, "moai.checkpoints.convert.psgtr.KIND"))


def available_conversions() -> tuple[str, ...]:
    """Names of the kinds of checkpoint that can be converted."""
    return tuple(kind.name for kind in load_kinds())


def convert(
    source: str | Path,
    output: str | Path,
    *,
    kind: str | None = None,
    dtype: str | torch.dtype | None = None,
    force: bool = False,
    revision: str | None = None,
    verbalizers: PublishedVerbalizers | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    **settings: Any,
) -> ConversionReport:
    """Convert a checkpoint to this project's format, whatever kind it is.

    Args:
        source: Checkpoint folder (or file, for kinds that are files), or a name on the Hugging Face hub
            (``"BK-Lee/MoAI-7B"``), which is fetched together with the models in ``verbalizers`` unless
            ``HF_HUB_OFFLINE=1``. A folder of that name wins.
        output: Folder to create.
        kind: One of :func:`available_conversions`; None finds out.
        dtype: ``float32``, ``float16``, ``bfloat16`` or a torch dtype; None keeps the source's.
        force: Replace an existing output.
        revision: Branch, tag or commit on the hub; None = the main branch.
        verbalizers: Who looks for a converted MoAI; None = the published models.
        shard_bytes: Size of a weight file; memory needed is about as much.
        **settings: Of the kind's own function: ``image_size``, an OpenFlamingo's ``text`` and ``vision``, an
            Emu's ``text``, a Prismer's ``label_encoder``.

    Returns:
        An account of what was read and written.

    Raises:
        ValueError: If the source is of no known kind or cannot be fetched, or its conversion fails.
    """
    name, source, output, stored = str(source), Path(source), Path(output), parse_dtype(dtype)
    is_on_hub = not source.exists() and is_hub_name(name)
    if revision is not None and not is_on_hub:
        raise ValueError(f"expected a hub name with a revision, got the path {name!r}. Leave the revision out.")
    if not is_on_hub and not source.exists():
        raise ValueError(
            f"Expected a checkpoint, got {name}, which does not exist. Check the path, or give a hub name (owner/name)."
        )
    notes, origin = (), None
    if is_on_hub:
        check_output(output, force=force)
        source = download_checkpoint(name, revision)
        origin = f"{name} at {source.name}"
        notes = _fetch(verbalizers or PublishedVerbalizers())
    handler, weights = _find_kind(source, kind)
    if "verbalizers" in handler.own_settings:
        settings["verbalizers"] = verbalizers
    elif verbalizers is not None:
        raise ValueError(f"verbalizers are chosen for a MoAI, got a checkpoint of the kind {handler.name!r}.")
    others = {name for kind in load_kinds() for name in kind.own_settings} - set(handler.own_settings)
    strangers = sorted(others & set(settings))
    if strangers:
        raise ValueError(
            f"expected settings of the kind {handler.name!r} ({', '.join(handler.own_settings) or 'it has none'}), got "
            f"{', '.join(strangers)}. Leave them out."
        )
    report = handler.run(
        weights, source, output, dtype=stored, force=force, origin=origin, shard_bytes=shard_bytes, **settings
    )
    return replace(report, notes=(*report.notes, *notes))


def _fetch(verbalizers: PublishedVerbalizers) -> tuple[str, ...]:
    """Download the verbalizers' models to the local cache. A missing one is reported, and does not stop the
    conversion.
    """
    notes = []
    for name in verbalizers.hub_names():
        try:
            download_checkpoint(name, is_safetensors_only=True)
        except ValueError as error:
            notes.append(f"{name} is not here yet: {error}")
    return tuple(notes)


def _find_kind(source: Path, name: str | None) -> tuple[ConversionKind, TensorFolder]:
    """The kind of a source, and its weights."""
    kinds = load_kinds()
    if name is not None:
        for kind in kinds:
            if kind.name == name:
                return kind, kind.open(source)
        raise ValueError(f"`kind` must be one of {available_conversions()}, got {name!r}.")
    opened: dict[str, TensorFolder] = {}
    for kind in kinds:
        place = kind.subfolder if kind.subfolder and (source / kind.subfolder).is_dir() else ""
        if place not in opened and not _has_weights(source / place):
            continue
        weights = opened.setdefault(place, opened.get(place) or kind.open(source))
        if kind.recognises(weights.tensors):
            return kind, weights
    raise ValueError(
        f"{source} is none of the kinds that can be converted: {', '.join(available_conversions())}. "
        "A plain vision tower or language model needs no conversion: use MoAIForConditionalGeneration.from_backbones."
    )


def _has_weights(place: Path) -> bool:
    """Whether there is something to open: a broken file is told, that there is none is another kind's matter."""
    files = [place] if place.is_file() else place.iterdir()
    return any(file.suffix in (".safetensors", *TORCH_SUFFIXES) for file in files)


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Turn a dtype's name into the dtype.

    Raises:
        ValueError: If it is no floating dtype torch knows.
    """
    if isinstance(dtype, str):
        found = getattr(torch, dtype.removeprefix("torch."), None)
    else:
        found = dtype
    if found is not None and (not isinstance(found, torch.dtype) or not found.is_floating_point):
        found = None
    if dtype is not None and found is None:
        raise ValueError(f"`dtype` must be float32, float16 or bfloat16, got {dtype!r}.")
    return found
