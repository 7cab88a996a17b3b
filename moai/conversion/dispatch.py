"""One door for every kind of checkpoint that can be converted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import official, psgtr
from .official_config import looks_official
from .report import ConversionReport
from .tensor_folder import TensorFolder


@dataclass(frozen=True)
class ConversionKind:
    """A kind of source and what handles it.

    Attributes:
        name: For example ``official-moai``.
        recognises: Tells from the source path whether it is of this kind.
        convert: ``convert(source, output, *, dtype, force, **settings) -> ConversionReport``.
    """

    name: str
    recognises: Callable[[Path], bool]
    convert: Callable[..., ConversionReport]


def _is_official_moai(source: Path) -> bool:
    return source.is_dir() and looks_official(TensorFolder(source).shapes)


KINDS: tuple[ConversionKind, ...] = (
    ConversionKind(official.KIND, _is_official_moai, official.convert_official_checkpoint),
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
    **settings: Any,
) -> ConversionReport:
    """Convert a checkpoint to this project's format, whatever kind it is.

    Args:
        source: Checkpoint folder (or file, for kinds that are files).
        output: Folder to create.
        kind: One of :func:`available_conversions`; None finds out.
        dtype: ``float32``, ``float16``, ``bfloat16`` or a torch dtype; None keeps the source's.
        force: Replace an existing output.
        **settings: Passed to the kind's own function, for example ``image_size``.

    Returns:
        An account of what was read and written.

    Raises:
        ValueError: If the source is of no known kind, or its conversion fails.
    """
    source, output, stored = Path(source), Path(output), parse_dtype(dtype)
    if not source.exists():
        raise ValueError(f"Expected a checkpoint, got {source}, which does not exist. Check the path.")
    handler = _find_kind(source, kind)
    return handler.convert(source, output, dtype=stored, force=force, **settings)


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
