"""Configuration of the compressor."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

ARCHITECTURES = ("encoder", "perceiver")


@dataclass
class CompressorConfig:
    """Configuration of the compressor (MoAI, arXiv 2403.07508, section 3.1, "MoAI-Compressor").

    Attributes:
        architecture: ``encoder`` keeps the order of the auxiliary words (new models); ``perceiver`` is the
            release's, blind to order, for its weights.
        hidden_size: Width D of the auxiliary tokens and of the latents.
        num_latents: Number N of learned latents; 64 in MoAI-7B.
        num_layers: Layers; 4 in the release's perceiver.
        num_heads: Attention heads.
        head_dim: Width of one head.
        feed_forward_multiplier: Inner width of the feed-forward, in units of ``hidden_size``.
        text_window: ``encoder`` only: auxiliary words see words at most this far away, which keeps the cost
            linear in their number; latents see all. 0 lets every word see every word.
        num_local_heads: ``encoder`` only: heads in which latents read the words in order, each its own stretch of
            the text; the other heads look wherever they like.
        rope_theta: ``encoder`` only: base of the rotary positions of the words.

    Raises:
        ValueError: If a field is outside its range.
    """

    architecture: str = "encoder"
    hidden_size: int = 4096
    num_latents: int = 64
    num_layers: int = 4
    num_heads: int = 4
    head_dim: int = 64
    feed_forward_multiplier: float = 1.0
    text_window: int = 256
    num_local_heads: int = 0
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"`compressor.architecture` must be one of {ARCHITECTURES}, got {self.architecture!r}.")
        for name in ("hidden_size", "num_latents", "num_layers", "num_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"`compressor.{name}` must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.num_local_heads <= self.num_heads:
            raise ValueError(
                f"`compressor.num_local_heads` must be 0 to num_heads = {self.num_heads}, got {self.num_local_heads}."
            )
        if self.head_dim % 2:
            raise ValueError(f"`compressor.head_dim` must be even (rotary positions), got {self.head_dim}.")
        if self.text_window < 0:
            raise ValueError(f"`compressor.text_window` must be 0 (no window) or more, got {self.text_window}.")
        if self.feed_forward_size < 1:
            raise ValueError(
                "`compressor.feed_forward_multiplier` must leave at least one inner feature of "
                f"{self.hidden_size} x multiplier, got {self.feed_forward_multiplier}."
            )
        if self.rope_theta <= 0:
            raise ValueError(f"`compressor.rope_theta` must be positive, got {self.rope_theta}.")

    @property
    def inner_size(self) -> int:
        """Width of all heads together."""
        return self.num_heads * self.head_dim

    @property
    def feed_forward_size(self) -> int:
        """Inner width of the feed-forward."""
        return int(self.hidden_size * self.feed_forward_multiplier)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return asdict(self)
