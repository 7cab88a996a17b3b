"""Outputs of the pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mixer import IMAGE_EXPERTS as IMAGE_SOURCES
from mixer import LANGUAGE_EXPERTS as LANGUAGE_SOURCES
from mixer import LayerRouting
from verbalizers import Scene

__all__ = ["IMAGE_SOURCES", "LANGUAGE_SOURCES", "MoAIOutput", "PipelineError", "PromptRouting"]


@dataclass(frozen=True, eq=False)
class PromptRouting:
    """Gate weights of one mixer layer for one prompt.

    Attributes:
        layer_idx: Zero-based decoder layer.
        image: ``(patches, 3)`` float32 on the CPU, rows sum to 1, experts as in :data:`IMAGE_SOURCES`; patches row by
            row from the top left.
        language: ``(words, 3)`` float32, experts as in :data:`LANGUAGE_SOURCES`; prompt tokens in order.
    """

    layer_idx: int
    image: torch.Tensor
    language: torch.Tensor

    @classmethod
    def from_batch(cls, routing: Sequence[LayerRouting], row: int) -> tuple[PromptRouting, ...]:
        """Take one row of a batch's routing, padding removed."""
        return tuple(
            cls(
                layer.layer_idx,
                layer.image[row][layer.image_mask[row]].float().cpu(),
                layer.language[row][layer.language_mask[row]].float().cpu(),
            )
            for layer in routing
        )

    def shares(self) -> dict[str, Any]:
        """Mean weight of every expert per stream, as plain numbers."""
        return {
            "layer": self.layer_idx,
            "image": _mean_shares(self.image, IMAGE_SOURCES),
            "language": _mean_shares(self.language, LANGUAGE_SOURCES),
        }


def _mean_shares(weights: torch.Tensor, names: tuple[str, ...]) -> dict[str, float] | None:
    if not len(weights):
        return None
    return {name: round(share, 4) for name, share in zip(names, weights.mean(dim=0).tolist(), strict=True)}


@dataclass(frozen=True, eq=False)
class MoAIOutput:
    """One answer with its scene, auxiliary text and routing.

    Attributes:
        answer: The model's words; None where there is an ``error``.
        scene: What the verbalizers found; None where the image could not be read.
        auxiliary_text: The findings in words, as the model read them.
        routing: Gate weights per mixer layer when asked for, else None.
        missing: Kind -> why this intelligence did not contribute. The answer was given without it.
        error: Why there is no answer (``on_error="skip"`` only).
    """

    answer: str | None
    scene: Scene | None = None
    auxiliary_text: str = ""
    routing: tuple[PromptRouting, ...] | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Values that ``json.dumps`` accepts; routing as mean shares per layer and stream."""
        return {
            "answer": self.answer,
            "scene": None if self.scene is None else self.scene.to_dict(),
            "auxiliary_text": self.auxiliary_text,
            "routing": None if self.routing is None else [layer.shares() for layer in self.routing],
            "missing": dict(self.missing),
            **({} if self.error is None else {"error": self.error}),
        }


class PipelineError(ValueError):
    """One image or question of a list cannot be answered.

    Attributes:
        index: Which one.
        outputs: The answers given before it, in order: they are not lost.
    """

    def __init__(self, message: str, index: int, outputs: Sequence[MoAIOutput] = ()) -> None:
        super().__init__(message)
        self.index = index
        self.outputs = list(outputs)
