"""How many tokens a decoder reads."""

from __future__ import annotations

from typing import Any

__all__ = ["count_positions"]


def count_positions(text_config: Any) -> int | None:
    """Tokens that a decoder reads, the answer included; None = no known bound.

    Args:
        text_config: Its configuration.
    """
    rope = getattr(text_config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "dynamic":  # dynamic NTK reads on beyond what it was trained with
        return None
    names = ("max_position_embeddings", "max_seq_len")  # MPT's name for it
    return next((value for name in names if (value := getattr(text_config, name, None)) is not None), None)
