"""Gated blocks in front of a Hugging Face decoder's layers.

The decoder stays a plain LlamaModel, MptModel, GPTNeoXModel, ...: same modules, same state-dict keys. Only the classes
of the chosen layers are exchanged for subclasses made here, which pass their input through a block first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers.utils.output_capturing import CompileableContextVar

from ..derived_classes import derive_class
from .gated_cross_attention import Media

__all__ = ["find_layers", "insert_blocks", "looking_at"]


@dataclass
class Looking:
    """What the layers of one pass look at.

    Attributes:
        blocks: Gated blocks by layer.
        media: The images; None = text alone.
    """

    blocks: nn.ModuleDict
    media: Media | None


# Not every decoder hands unknown arguments down to its layers (MPT drops them): they read this when they are called.
_looking = CompileableContextVar("flamingo_looking")


@contextmanager
def looking_at(blocks: nn.ModuleDict, media: Media | None) -> Iterator[None]:
    """Context of a decoder's pass over text with images.

    Args:
        blocks: Gated blocks by layer.
        media: The images; None = text alone.
    """
    token = _looking.set(Looking(blocks, media))
    try:
        yield
    finally:
        _looking.reset(token)


@cache
def looking_layer_class(layer_class: type[nn.Module]) -> type[nn.Module]:
    """Subclass a decoder layer so that its input goes through a gated block first."""

    # Read when called, as an argument: gradient checkpointing runs `forward` again, when the context has ended.
    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return layer_class.__call__(self, *args, looking=_looking.get(), **kwargs)

    def forward(
        self: nn.Module, hidden_states: torch.Tensor, *args: Any, looking: Looking | None = None, **kwargs: Any
    ) -> Any:
        if looking is not None:
            hidden_states = looking.blocks[self.block_name](hidden_states, looking.media)
        return layer_class.forward(self, hidden_states, *args, **kwargs)

    return derive_class(layer_class, looking_layer_class, __call__=__call__, forward=forward, __module__=__name__)


def find_layers(decoder: nn.Module) -> nn.ModuleList:
    """A decoder's layers.

    Raises:
        ValueError: It keeps none under a known name.
    """
    for name in ("layers", "blocks", "h"):
        if isinstance(layers := getattr(decoder, name, None), nn.ModuleList):
            return layers
    raise ValueError(
        f"expected a decoder with `layers` or `blocks`, got {type(decoder).__name__}. Use a decoder of Llama's kind, "
        "MPT or GPT-NeoX."
    )


def insert_blocks(decoder: nn.Module, block_layers: list[int]) -> None:
    """Prepare a freshly built decoder for :func:`looking_at`, in place.

    Args:
        decoder: Of any family that has a list of layers, which take the hidden states first.
        block_layers: Layers with a block.
    """
    layers = find_layers(decoder)
    for index in block_layers:
        layers[index].block_name = str(index)
        layers[index].__class__ = looking_layer_class(type(layers[index]))
