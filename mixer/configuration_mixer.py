"""Configuration of the mixer layers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

ROUTING_MODES = ("gated", "random_expert", "uniform")
#: What the three experts of each stream attend to, in the order of weights and gates: auxiliary, the other modality,
#: the stream itself (paper, section 3.2).
IMAGE_EXPERTS = ("auxiliary", "language", "image")
LANGUAGE_EXPERTS = ("auxiliary", "image", "language")
NUM_EXPERTS = len(IMAGE_EXPERTS)


@dataclass
class MixerConfig:
    """Configuration of the mixer layers (MoAI, arXiv 2403.07508, section 3.2, "MoAI-Mixer").

    Attributes:
        hidden_size: Width D of the decoder whose layers are mixed.
        layers: Zero-based decoder layers that carry a mixer, ascending. MoAI-7B: (7, 15, 23, 31).
        num_heads: Attention heads of every expert; must divide ``hidden_size``.
        rank: Inner width of each low-rank projection pair.
        use_activation: Apply GELU after each of the q, k, v, o projections. The release does.
        qk_norm: Normalise queries and keys per head, with learned gains. The release does not; without, experts
            may saturate: nearly all weight on one token, and no gradient that could move it.
        routing: Default routing: ``gated`` (stage 2 and inference), ``random_expert`` (stage 1), ``uniform``.
        top_k: Experts kept per token in gated routing, 1 to 3; kept gates are renormalised.
        init_scale: Standard deviation of new projections is ``init_scale / sqrt(fan_in)``; None becomes 1.5 with
            the GELUs, which halve the variance, and 1 without.
        mixes_answers: Answer and decoded tokens read auxiliary tokens and images too, by the language stream's experts
            and gate; no expert of theirs reads language, which would show an answer what follows it. Released weights
            were trained without (every answer bypasses the mixture), and there is no parameter for it.
        output_init_scale: Extra factor on the last output projection of new experts, so that a mixer inserted
            into a pretrained decoder starts near the identity while every projection still receives gradient.

    Raises:
        ValueError: If a field is outside its range.
    """

    hidden_size: int = 4096
    layers: tuple[int, ...] = (7, 15, 23, 31)
    num_heads: int = 4
    rank: int = 64
    use_activation: bool = True
    qk_norm: bool = False
    routing: str = "gated"
    top_k: int = NUM_EXPERTS
    init_scale: float | None = None
    output_init_scale: float = 0.25
    mixes_answers: bool = False

    def __post_init__(self) -> None:
        self.layers = tuple(int(layer) for layer in self.layers)
        if list(self.layers) != sorted(set(self.layers)) or any(layer < 0 for layer in self.layers):
            raise ValueError(
                f"`mixer.layers` must be ascending, distinct, zero-based decoder layers, got {self.layers}."
            )
        for name in ("hidden_size", "num_heads", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"`mixer.{name}` must be at least 1, got {getattr(self, name)}.")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"`mixer.num_heads` must divide the decoder width {self.hidden_size}, got {self.num_heads}."
            )
        if self.routing not in ROUTING_MODES:
            raise ValueError(f"`mixer.routing` must be one of {ROUTING_MODES}, got {self.routing!r}.")
        if not 1 <= self.top_k <= NUM_EXPERTS:
            raise ValueError(f"`mixer.top_k` must be 1 to {NUM_EXPERTS}, got {self.top_k}.")

        if self.init_scale is None:
            self.init_scale = 1.5 if self.use_activation else 1.0
        for name in ("init_scale", "output_init_scale"):
            if getattr(self, name) <= 0:
                raise ValueError(
                    f"`mixer.{name}` must be positive, got {getattr(self, name)}. At 0 an expert gets no gradient."
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return {**asdict(self), "layers": list(self.layers)}


def evenly_spaced_layers(num_hidden_layers: int, num_mixers: int) -> tuple[int, ...]:
    """Place mixers as the paper does: every n-th layer, the last one included.

    Args:
        num_hidden_layers: Depth of the decoder.
        num_mixers: Mixers wanted, at most ``num_hidden_layers``.

    Returns:
        Zero-based layer indices; ``evenly_spaced_layers(32, 4) == (7, 15, 23, 31)``.

    Raises:
        ValueError: If ``num_mixers`` is not in 0..num_hidden_layers.
    """
    if not 0 <= num_mixers <= num_hidden_layers:
        raise ValueError(f"`num_mixers` must be 0 to {num_hidden_layers}, got {num_mixers}.")
    return tuple((index + 1) * num_hidden_layers // num_mixers - 1 for index in range(num_mixers))
