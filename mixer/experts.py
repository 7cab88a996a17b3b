"""One expert: cross- or self-attention whose four projections are low-rank pairs."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

KeysValues = tuple[torch.Tensor, torch.Tensor]


class LowRankProjection(nn.Module):
    """Linear(D, r) then Linear(r, D), both without bias.

    The factors are direct parameters, not ``nn.Linear``: quantisers and LoRA leave them alone, and their
    initialisation is decided by this class only.

    Args:
        hidden_size: Width D.
        rank: Inner width r.
    """

    def __init__(self, hidden_size: int, rank: int, *, init_scale: float = 1.5, output_scale: float = 1.0) -> None:
        super().__init__()
        self.init_scale, self.output_scale = init_scale, output_scale
        self.down = nn.Parameter(torch.empty(rank, hidden_size))
        self.up = nn.Parameter(torch.empty(hidden_size, rank))
        self.reset_parameters()

    @property
    def init_stds(self) -> tuple[float, float]:
        """Standard deviations of new (down, up) factors: variance survives both products and the GELU after them."""
        return (
            self.init_scale * self.down.shape[1] ** -0.5,
            self.init_scale * self.output_scale * self.up.shape[1] ** -0.5,
        )

    def reset_parameters(self) -> None:
        """Reinitialize both factors."""
        if self.down.is_meta:  # weights are about to be loaded: torch would be long about nothing
            return
        for factor, std in zip((self.down, self.up), self.init_stds, strict=True):
            nn.init.normal_(factor, std=std)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Project ``(B, N, D)`` tokens to ``(B, N, D)``."""
        return F.linear(F.linear(tokens, self.down), self.up)


class Expert(nn.Module):
    """Multi-head attention from one stream to a source, without causal mask (paper, section 3.2).

    Args:
        hidden_size: Width D.
        num_heads: Heads H; D / H wide each.
        rank: Inner width of the projections.
        use_activation: GELU after each projection, as in the release.
        qk_norm: Queries and keys of each head are scaled to a root mean square of one, times learned gains
            (arXiv 2010.04245; as in Qwen3), so that attention cannot saturate.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        rank: int,
        *,
        use_activation: bool = True,
        qk_norm: bool = False,
        init_scale: float = 1.5,
        output_init_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.activation = nn.GELU() if use_activation else nn.Identity()
        self.query = LowRankProjection(hidden_size, rank, init_scale=init_scale)
        self.key = LowRankProjection(hidden_size, rank, init_scale=init_scale)
        self.value = LowRankProjection(hidden_size, rank, init_scale=init_scale)
        self.output = LowRankProjection(hidden_size, rank, init_scale=init_scale, output_scale=output_init_scale)
        head_dim = hidden_size // num_heads
        self.query_norm, self.key_norm = (
            nn.RMSNorm(head_dim, eps=1e-6) if qk_norm else nn.Identity() for _ in ("query", "key")
        )

    def _heads(self, projection: LowRankProjection, tokens: torch.Tensor) -> torch.Tensor:
        projected = self.activation(projection(tokens))  # (B, N, D)
        return projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, N, D / H)

    def project_queries(self, tokens: torch.Tensor) -> torch.Tensor:
        """Queries ``(B, H, N, D / H)`` of ``(B, N, D)`` tokens."""
        return self.query_norm(self._heads(self.query, tokens))

    def project(self, source: torch.Tensor) -> KeysValues:
        """Keys and values of a ``(B, S, D)`` source, each ``(B, H, S, D / H)``."""
        return self.key_norm(self._heads(self.key, source)), self._heads(self.value, source)

    def forward(
        self, tokens: torch.Tensor, source: torch.Tensor | KeysValues, source_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Attend; the residual is added by the mixer layer.

        Args:
            tokens: ``(B, N, D)`` queries.
            source: ``(B, S, D)``, or what :meth:`project` made of it.
            source_mask: ``(B, S)`` bool, True = keep, at least one per row; None keeps all (the fast kernels).

        Returns:
            ``(B, N, D)``.
        """
        keys, values = self.project(source) if isinstance(source, torch.Tensor) else source
        attended = F.scaled_dot_product_attention(
            self.project_queries(tokens),
            keys,
            values,
            attn_mask=None if source_mask is None else source_mask[:, None, None, :],
        )
        return self.activation(self.output(attended.transpose(1, 2).flatten(2)))
