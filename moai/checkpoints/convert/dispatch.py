"""Conversion of any kind of checkpoint: finds its kind and calls the converter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from verbalizers.core.durable_files import check_output

from ..io.hub_download import download_checkpoint
from ..io.lookup import is_hub_name
from ..io.tensor_folder import TensorFolder
from . import emu, flamingo, official, prismer, psgtr, tcl
from .official_config import looks_official
from .published_verbalizers import PublishedVerbalizers
from .report import ConversionReport


@dataclass(frozen=True)
class ConversionKind:
    """A kind of checkpoint: how it is recognised and converted.

    Attributes:
        name: For example ``official-moai``.
        recognises: Tells from the source path whether it is of this kind.
        convert: ``convert(source, output, *, dtype, force, **settings) -> ConversionReport``.
        own_settings: Settings that not every kind has.
    """

    name: str
    recognises: Callable[[Path], bool]
    convert: Callable[..., ConversionReport]
    own_settings: tuple[str, ...] = ()


def _is_official_moai(source: Path) -> bool:
    return source.is_dir() and looks_official(TensorFolder(source).shapes)


KINDS: tuple[ConversionKind, ...] = (
    ConversionKind(emu.KIND, emu.is_emu, emu.convert_emu_checkpoint, ("text",)),
    ConversionKind(
        flamingo.KIND, flamingo.is_open_flamingo, flamingo.convert_open_flamingo_checkpoint, ("text", "vision")
    ),
    ConversionKind(official.KIND, _is_official_moai, official.convert_official_checkpoint),
    ConversionKind(prismer.KIND, prismer.is_prismer, prismer.convert_prismer_checkpoint, ("label_encoder",)),
    ConversionKind(tcl.KIND, tcl.is_tcl, tcl.convert_tcl_checkpoint),
    ConversionKind(psgtr.KIND, psgtr.is_psgtr_checkpoint, psgtr.convert_psgtr),
)


def available_conversions() -> tuple[str, ...]:
    """Names of the kinds of checkpoint that can be converted."""
    return tuple(kind.name for kind in KINDS)


def convert(
    source: str | Path,
    output: str | Path,
    *,
    kind: str | None = None,
    dtype: str | torch.dtype | None = None,
    force: bool = False,
    revision: str | None = None,
    verbalizers: PublishedVerbalizers | None = None,
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
        **settings: Of the kind's own function: ``image_size``, an OpenFlamingo's ``text`` and ``vision``, an
            Emu's ``text``, a Prismer's
            ``label_encoder``.

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
    notes: tuple[str, ...] = ()
    if is_on_hub:
        check_output(output, force=force)
        source = download_checkpoint(name, revision)
        settings["origin"] = f"{name} at {source.name}"
        notes = _fetch(verbalizers or PublishedVerbalizers())
    handler = _find_kind(source, kind)
    if handler.name == official.KIND:
        settings["verbalizers"] = verbalizers
    elif verbalizers is not None:
        raise ValueError(f"verbalizers are chosen for a MoAI, got a checkpoint of the kind {handler.name!r}.")
    others = {name for kind in KINDS for name in kind.own_settings} - set(handler.own_settings)
    strangers = sorted(others & set(settings))
    if strangers:
        raise ValueError(
            f"expected settings of the kind {handler.name!r} ({', '.join(handler.own_settings) or 'it has none'}), got "
            f"{', '.join(strangers)}. Leave them out."
        )
    report = handler.convert(source, output, dtype=stored, force=force, **settings)
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


def _find_kind(source: Path, name: str | None) -> ConversionKind:
    if name is not None:
        for kind in KINDS:
            if kind.name == name:
                return kind
        raise ValueError(f"`kind` must be one of {available_conversions()}, got {name!r}.")
    for kind in KINDS:
        if kind.recognises(source):
            return kind
    raise ValueError(
        f"{source} is none of the kinds that can be converted: {', '.join(available_conversions())}. "
        "A plain vision tower or language model needs no conversion: use MoAIForConditionalGeneration.from_backbones."
    )


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
