"""Routing of an answer: options in, gate weights of the prompt out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from mixer import IMAGE_EXPERTS, LANGUAGE_EXPERTS, LayerRouting

__all__ = ["DRAWN_ROUTINGS", "PromptRouting", "draw_routing", "parse_routing", "select_routing"]

#: Modes of :func:`draw_routing`.
DRAWN_ROUTINGS = ("gated", "uniform", "random_expert", "random_weights")


@dataclass(frozen=True, eq=False)
class PromptRouting:
    """Gate weights of one mixer layer for one prompt.

    Attributes:
        layer_idx: Zero-based decoder layer.
        image: ``(patches, 3)`` float32 on the CPU, rows sum to 1, experts as in ``image_experts``; patches row by row
            from the top left.
        language: ``(words, 3)`` float32, experts as in ``language_experts``; prompt tokens in order.
    """

    image_experts: ClassVar[tuple[str, ...]] = IMAGE_EXPERTS
    language_experts: ClassVar[tuple[str, ...]] = LANGUAGE_EXPERTS
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

    def to_dict(self) -> dict[str, Any]:
        """Mean weight of every expert per stream, as plain numbers."""
        return {
            "layer": self.layer_idx,
            "image": _mean_shares(self.image, IMAGE_EXPERTS),
            "language": _mean_shares(self.language, LANGUAGE_EXPERTS),
        }


def _mean_shares(weights: torch.Tensor, names: tuple[str, ...]) -> dict[str, float] | None:
    if not len(weights):
        return None
    return {name: round(share, 4) for name, share in zip(names, weights.mean(dim=0).tolist(), strict=True)}


def parse_routing(value: Any) -> Any:
    """``"uniform"`` stays; ``"0.5,0.3,0.2"`` and nested lists become a tensor of weights.

    A JSON list, ``"[[[0.5,0.3,0.2],[1,0,0]], ...]"``, gives them per mixer layer and stream (image, language); an
    object, ``'{"image": [[1,0,0], ...]}'``, per patch or word.

    Raises:
        ValueError: Text with numbers, but not three (auxiliary, other modality, self).
    """
    if isinstance(value, (list, tuple)):
        return torch.tensor(value, dtype=torch.float32)
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            read = json.loads(value)
            return read if isinstance(read, dict) else torch.tensor(read, dtype=torch.float32)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"expected `routing` as a list of weights (layers, 2, 3), or an object, got {value!r}."
            ) from error
    if not isinstance(value, str) or "," not in value:
        return value
    try:
        weights = [float(part) for part in value.split(",")]
    except ValueError as error:
        raise ValueError(f"expected `routing` as a mode or three numbers a,b,c, got {value!r}.") from error
    if len(weights) != 3:
        raise ValueError(f"expected three weights (auxiliary, other modality, self) in `routing`, got {len(weights)}.")
    return torch.tensor(weights)


def draw_routing(mode: str, top_k: int, seed: tuple[int, ...], num_layers: int) -> dict[str, Any] | torch.Tensor:
    """The ``routing`` of one forward pass, as :func:`mixer.resolve_routing` takes it.

    Args:
        mode: ``gated``, ``uniform``, ``random_expert``, or ``random_weights``: weights from a flat Dirichlet
            distribution.
        top_k: Experts mixed per token where gates decide.
        seed: Numbers that decide what is random.
        num_layers: Number M of mixer layers.

    Returns:
        A mapping; of random weights the weights ``(M, 2, 3)``, float32.
    """
    number = int(np.random.SeedSequence(seed).generate_state(1)[0])
    if mode == "random_weights":
        return torch.from_numpy(np.random.default_rng(number).dirichlet(np.ones(3), (num_layers, 2))).float()
    return {"mode": mode, "top_k": top_k} | ({"seed": number} if mode == "random_expert" else {})


def select_routing(routing: Any, indices: Sequence[int], num_queries: int) -> Any:
    """The routing of some queries: weights given per query ``(B, M, 2, 3)`` lose the other rows.

    Raises:
        ValueError: There are neither one nor ``num_queries`` rows.
    """
    if not isinstance(routing, torch.Tensor) or routing.dim() != 4 or routing.shape[0] == 1:
        return routing
    if routing.shape[0] != num_queries:
        raise ValueError(
            f"expected routing weights for each of the {num_queries} questions, got {routing.shape[0]} rows. "
            "Pass (M, 2, 3) for the same weights everywhere."
        )
    return routing[list(indices)]
