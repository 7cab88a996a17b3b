"""Expert routing: random, gated, top-k or fixed weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .configuration_mixer import NUM_EXPERTS, ROUTING_MODES, MixerConfig

IMAGE, LANGUAGE = 0, 1  # order of the streams wherever both stand in one tensor
_STREAMS = ("image", "language")


@dataclass
class Routing:
    """One forward pass's routing, resolved before the first layer so that recomputation repeats it.

    Attributes:
        mode: ``gated``, ``random_expert``, ``uniform`` or ``given``.
        top_k: Experts kept per token when ``mode`` is ``gated``.
        choices: ``(M, 2)`` expert index per mixer layer and stream when ``mode`` is ``random_expert``.
        weights: ``(B or 1, M, 2, 3)`` float32, rows summing to 1, when ``mode`` is ``given``.
        token_weights: Instead of them, by stream ``(1, M, N, 3)`` for one prompt's N tokens; None = by the gate.
    """

    mode: str
    top_k: int = NUM_EXPERTS
    choices: tuple[tuple[int, int], ...] | None = None
    weights: torch.Tensor | None = None
    token_weights: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)

    def check_num_layers(self, num_layers: int) -> None:
        """Refuse a routing resolved for another number of mixer layers.

        Raises:
            ValueError: If the numbers differ.
        """
        tensors = (self.weights, *self.token_weights)
        for given in (self.choices, *(None if weights is None else weights[0] for weights in tensors)):
            if given is not None and len(given) != num_layers:
                raise ValueError(f"Expected a routing of {num_layers} mixer layers, got one of {len(given)}.")

    def of_stream(self, layer: int, stream: int) -> StreamRouting:
        """The routing of one stream in one mixer layer.

        Args:
            layer: The mixer's ordinal among the mixer layers.
            stream: ``IMAGE`` or ``LANGUAGE``.
        """
        weights = None if self.weights is None else self.weights[:, layer, stream].unsqueeze(1)
        if (by_token := self.token_weights[stream]) is not None:
            weights = by_token[:, layer]
        return StreamRouting(self.top_k, None if self.choices is None else self.choices[layer][stream], weights)

    def of_answers(self, layer: int) -> StreamRouting:
        """The routing of answer tokens: the language stream's; weights of a prompt's tokens are not theirs."""
        return Routing(self.mode, self.top_k, self.choices, self.weights).of_stream(layer, LANGUAGE)


class StreamRouting(NamedTuple):
    """How the experts of one stream in one mixer layer are weighed: by the gate unless one of the two is given.

    Attributes:
        top_k: Experts that the gate keeps per token.
        only_expert: The single expert to run (0 auxiliary, 1 other modality, 2 self).
        weights: ``(B or 1, 1 or N, 3)`` float32 fixed weights.
    """

    top_k: int
    only_expert: int | None
    weights: torch.Tensor | None


def resolve_routing(
    routing: str | Mapping[str, object] | torch.Tensor | Routing | None, config: MixerConfig
) -> Routing:
    """Turn what a caller may pass as ``routing=`` into a :class:`Routing`.

    Args:
        routing: None (the configured default), a mode's name, a mapping with ``mode``, ``top_k`` and, for
            ``random_expert``, ``seed``; or weights of shape (3,), (2, 3), (M, 2, 3) or (B, M, 2, 3) with stream
            order (image, language) and expert order (auxiliary, other modality, self), normalised to sum 1; or a
            mapping with ``image``, ``language`` or both: weights of shape (N, 3) or (M, N, 3) for one prompt's N
            patches or words, the gate weighing the other stream.
        config: Of the mixer: its M layers; mode and top-k where ``routing`` names none.

    Returns:
        The resolved routing.

    Raises:
        ValueError: If the mode, top-k or weights are not valid.
    """
    num_layers = len(config.layers)
    if isinstance(routing, Routing):
        routing.check_num_layers(num_layers)
        return routing
    if isinstance(routing, torch.Tensor):
        return Routing("given", weights=_check_weights(routing, num_layers))
    if routing is None or isinstance(routing, str):
        routing = {"mode": routing or config.routing}
    if not isinstance(routing, Mapping):
        raise ValueError(
            f"`routing` must be a mode name, a mapping or a tensor of weights, got {type(routing).__name__}."
        )
    if set(routing) & set(_STREAMS):
        return _resolve_tokens(routing, config)
    unknown = set(routing) - {"mode", "top_k", "seed"}
    if unknown:
        raise ValueError(
            f"`routing` takes the keys mode, top_k and seed, or image and language, got {sorted(unknown)}."
        )
    mode = str(routing.get("mode", config.routing))
    top_k = int(routing.get("top_k", config.top_k))
    if mode not in ROUTING_MODES:
        raise ValueError(f"`routing` mode must be one of {ROUTING_MODES}, got {mode!r}.")
    if not 1 <= top_k <= NUM_EXPERTS:
        raise ValueError(f"`routing` top_k must be 1 to {NUM_EXPERTS}, got {top_k}.")
    if mode == "uniform":
        return Routing("uniform", weights=torch.full((1, num_layers, 2, NUM_EXPERTS), 1 / NUM_EXPERTS))
    if mode == "random_expert":
        return Routing("random_expert", choices=draw_experts(num_layers, seed=routing.get("seed")))
    return Routing("gated", top_k=top_k)


def draw_experts(num_layers: int, seed: int | None = None) -> tuple[tuple[int, int], ...]:
    """Draw one expert per mixer layer and stream, uniformly (paper, section 3.3, first training step).

    Args:
        num_layers: Number of mixer layers.
        seed: Seed of a private generator, so that all ranks of a distributed run draw alike; None uses
            torch's global CPU generator.

    Returns:
        ``num_layers`` pairs (image stream's expert, language stream's expert).
    """
    generator = None if seed is None else torch.Generator().manual_seed(int(seed))
    draws = torch.randint(NUM_EXPERTS, (num_layers, 2), generator=generator)
    return tuple((image, language) for image, language in draws.tolist())


def _resolve_tokens(routing: Mapping[str, object], config: MixerConfig) -> Routing:
    """Weights per token of one prompt's streams."""
    num_layers = len(config.layers)
    if unknown := set(routing) - set(_STREAMS):
        raise ValueError(
            f"`routing` per token takes the keys image and language, got {sorted(map(str, unknown))}, too."
        )
    found: list[torch.Tensor | None] = []
    for name in _STREAMS:
        if routing.get(name) is None:
            found.append(None)
            continue
        try:
            weights = torch.as_tensor(routing[name], dtype=torch.float32).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"`routing` of {name} must hold rows of three weights, got {error}.") from error
        if weights.dim() not in (2, 3) or weights.shape[-1] != NUM_EXPERTS:
            raise ValueError(
                f"`routing` of {name} must have shape (tokens, 3) or ({num_layers}, tokens, 3), "
                f"got {tuple(weights.shape)}."
            )
        if weights.dim() == 3 and len(weights) != num_layers:
            raise ValueError(f"`routing` of {name} must have {num_layers} mixer layers, got {len(weights)}.")
        found.append(_normalise(weights.expand(num_layers, *weights.shape[-2:])[None]))
    return Routing("given", config.top_k, token_weights=tuple(found))


def _normalise(weights: torch.Tensor) -> torch.Tensor:
    total = weights.sum(-1, keepdim=True)
    if not torch.isfinite(weights).all() or (weights < 0).any() or (total <= 0).any():
        raise ValueError("Routing weights must be finite, non-negative and not all zero for any stream or token.")
    return weights / total


def _check_weights(weights: torch.Tensor, num_layers: int) -> torch.Tensor:
    expected = f"(3,), (2, 3), ({num_layers}, 2, 3) or (batch, {num_layers}, 2, 3)"
    shape = tuple(weights.shape)
    # Exactly these: a size 1 that merely broadcasts is more likely a mistake than a wish.
    if not 1 <= len(shape) <= 4 or shape[-3:] != (num_layers, 2, NUM_EXPERTS)[-len(shape) :] or 0 in shape[:1]:
        raise ValueError(f"Routing weights must have shape {expected}, got {shape}.")
    batch = shape[0] if len(shape) == 4 else 1
    return _normalise(weights.detach().float().expand(batch, num_layers, 2, NUM_EXPERTS))
