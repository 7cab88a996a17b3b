"""The choice of 4 or 8 bits as a configuration of bitsandbytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..import_utils import require

__all__ = ["list_wanted_bits", "resolve_quantization"]


def list_wanted_bits(kwargs: Mapping[str, Any]) -> list[int]:
    """Bits that ``load_in_4bit`` and ``load_in_8bit`` ask for."""
    return [bits for bits in (4, 8) if kwargs.get(f"load_in_{bits}bit")]


def resolve_quantization(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Turn ``load_in_4bit=True`` and ``load_in_8bit=True`` into a ``quantization_config``.

    Args:
        kwargs: Keyword arguments of ``from_pretrained``; ``quantize_all`` is taken out.

    Returns:
        The arguments of today's transformers; 4 bits are nf4 with double quantization.

    Raises:
        ImportError: If bitsandbytes is not installed; says what to install.
        ValueError: If both 4 and 8 bits are asked for, one of them beside a ``quantization_config``, or
            ``quantize_all`` without bits.
    """
    wanted = list_wanted_bits(kwargs)
    if kwargs.get("quantize_all") and not wanted:
        raise ValueError("Expected load_in_4bit or load_in_8bit beside `quantize_all`, got neither. Add one.")
    ours = ("load_in_4bit", "load_in_8bit", "quantize_all")
    kwargs = {name: value for name, value in kwargs.items() if name not in ours}
    if len(wanted) > 1:
        raise ValueError("Expected one of load_in_4bit and load_in_8bit, got both. Choose one.")
    if not wanted:
        return kwargs
    if kwargs.get("quantization_config") is not None:
        raise ValueError("Expected load_in_4bit / load_in_8bit or `quantization_config`, got both. Choose one.")
    require("bitsandbytes", purpose="4-bit and 8-bit loading")
    return kwargs | {"quantization_config": _build_config(wanted[0], kwargs.get("dtype"))}


def _build_config(bits: int, dtype: Any) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype if isinstance(dtype, torch.dtype) else torch.bfloat16,
    )
