"""The decoder's cache under its two names: transformers 5.24 renamed ``past_key_values`` to ``cache``."""

from __future__ import annotations

import warnings
from dataclasses import fields
from typing import Any

import torch
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

# Generation, the decoder's arguments and every output class use one name; ours follow the installed release.
CACHE_NAME = "cache" if any(field.name == "cache" for field in fields(BaseModelOutputWithPast)) else "past_key_values"


def resolve_cache(cache: Cache | None, past_key_values: Cache | None, is_generating: bool = False) -> Cache | None:
    """Choose between the two names a caller may have used; ``cache`` wins, and the former one warns where it is one.

    Args:
        cache: By the present name.
        past_key_values: By the former one, which PEFT's prompt learning uses while it generates.
        is_generating: Whether ``generate`` is the caller, whose user chose no name.
    """
    is_former = past_key_values is not None and CACHE_NAME != "past_key_values"
    if is_former and not is_generating and not torch.compiler.is_compiling():
        warnings.warn(
            "`past_key_values` is deprecated and will be removed in version 5.40.0. Use `cache` instead.",
            FutureWarning,
            stacklevel=3,
        )
    return past_key_values if cache is None else cache


def as_keyword(cache: Cache | None) -> dict[str, Any]:
    """Name a cache as the installed transformers does, for a call or an output class."""
    return {CACHE_NAME: cache}


def read_cache(source: Any) -> Cache | None:
    """Read the cache off a decoder's output."""
    return getattr(source, CACHE_NAME)


def name_cache_for_peft(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """A generation step's inputs, the cache by the name that the caller knows.

    PEFT's prompt learning, which stands in for ``prepare_inputs_for_generation`` then, knows the former name: without
    it virtual tokens would enter at every step (PEFT 0.21 with transformers 5.24).

    Args:
        model: That generates.
        inputs: As its own method prepared them; they are changed.
    """
    if "prepare_inputs_for_generation" in vars(model):
        inputs["past_key_values"] = inputs.pop(CACHE_NAME, None)
    return inputs


__all__ = ["CACHE_NAME", "as_keyword", "name_cache_for_peft", "read_cache", "resolve_cache"]
