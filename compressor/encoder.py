"""Encoder compressor (the default): a transformer encoder with rotary positions over the auxiliary text.

Latents attend to words, map patches and each other; words attend to words within a window, with rotary positions; the
patches of the segmentation map arrive from a vision tower with their 2-D positions and are read, not rewritten. So the
cost is linear in the number of auxiliary tokens, and who stands on whom survives.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_compressor import CompressorConfig
from .feed_forward import FeedForward

RotaryTables = tuple[torch.Tensor, torch.Tensor]


def rotary_tables(text_mask: torch.Tensor, head_dim: int, theta: float) -> RotaryTables:
    """Cosines and sines of the text tokens' positions, counted over attended tokens so that padding shifts nothing.

    Args:
        text_mask: ``(B, A)`` bool.
        head_dim: Width of one head, even.
        theta: Base of the geometric frequencies (RoFormer, arXiv 2104.09864).

    Returns:
        Two ``(B, 1, A, head_dim)`` float32 tensors.
    """
    positions = (text_mask.long().cumsum(dim=1) - 1).clamp_min(0).float()
    exponents = torch.arange(0, head_dim, 2, device=text_mask.device, dtype=torch.float32) / head_dim
    angles = (positions[..., None] * theta**-exponents).repeat(1, 1, 2).unsqueeze(1)
    return angles.cos(), angles.sin()


def rotate(states: torch.Tensor, tables: RotaryTables) -> torch.Tensor:
    """Apply rotary positions to ``(B, H, A, head_dim)`` queries or keys."""
    cosine, sine = (table.to(states.dtype) for table in tables)
    first, second = states.chunk(2, dim=-1)
    return states * cosine + torch.cat([-second, first], dim=-1) * sine


def local_reading_bias(text_mask: torch.Tensor, num_latents: int, num_heads: int) -> torch.Tensor:
    """Attention bias by distance: latent i attends to the i-th stretch of the text.

    Without it latents start by averaging the whole text, and have to discover order from the loss alone.

    Args:
        text_mask: ``(B, A)`` bool.
        num_latents: Number N of latents.
        num_heads: Heads that read so; slopes fall by half from head to head (ALiBi, arXiv 2108.12409).

    Returns:
        ``(B, num_heads, N, A)`` float32, 0 at a latent's own place, falling with the distance in units of one stretch.
    """
    length = text_mask.sum(dim=1, keepdim=True).float()  # (B, 1)
    positions = (text_mask.long().cumsum(dim=1) - 1).clamp_min(0).float()  # (B, A)
    stretch = (length / num_latents).clamp_min(1.0)
    centres = (torch.arange(num_latents, device=text_mask.device) + 0.5) / num_latents * length - 0.5  # (B, N)
    distance = (positions[:, None, :] - centres[:, :, None]).abs() / stretch[:, :, None]  # (B, N, A)
    slopes = 2.0 ** (1 - torch.arange(num_heads, device=text_mask.device))
    return -slopes[:, None, None] * distance[:, None]


def windowed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, window: int
) -> torch.Tensor:
    """Attention in which token i sees token j when |i - j| <= window and j is kept.

    Tokens are cut into blocks of ``window``; a block sees itself and its two neighbours, which hold every token in
    reach: memory and time grow linearly with length.

    Args:
        query: ``(B, H, A, d)``; ``key`` and ``value`` likewise.
        key: See ``query``.
        value: See ``query``.
        mask: ``(B, A)`` bool, True = keep.
        window: Reach in tokens, at least 1.

    Returns:
        ``(B, H, A, d)``; rows that are padding hold finite values of no meaning.
    """
    batch, heads, length, width = query.shape
    num_blocks = -(-length // window)
    padding = num_blocks * window - length
    query = F.pad(query, (0, 0, 0, padding)).unflatten(2, (num_blocks, window))
    key, value = (F.pad(states, (0, 0, window, padding + window)) for states in (key, value))
    kept = F.pad(mask, (window, padding + window))
    # unfold: (B, H, blocks, d, 3 * window) -> (B, H, blocks, 3 * window, d)
    key, value = (states.unfold(2, 3 * window, window).transpose(-1, -2) for states in (key, value))
    kept = kept.unfold(1, 3 * window, window)  # (B, blocks, 3 * window)
    offset = torch.arange(3 * window, device=query.device) - window
    row = torch.arange(window, device=query.device)
    distance = (offset[None, :] - row[:, None]).abs()  # (window, 3 * window)
    allowed = (distance <= window) & kept[:, :, None, :]  # (B, blocks, window, 3 * window)
    # A padding query would see nothing and softmax to NaN: let it see itself.
    allowed = allowed | ((distance == 0) & ~allowed.any(-1, keepdim=True))
    query, key, value = (states.transpose(1, 2).flatten(0, 1) for states in (query, key, value))
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed.flatten(0, 1).unsqueeze(1))
    attended = attended.unflatten(0, (batch, num_blocks)).transpose(1, 2)
    return attended.reshape(batch, heads, num_blocks * window, width)[:, :, :length]


class EncoderAttention(nn.Module):
    """Attention with one set of projections for text tokens, patches and latents.

    Args:
        config: Widths.
    """

    def __init__(self, config: CompressorConfig) -> None:
        super().__init__()
        self.num_heads, self.window = config.num_heads, config.text_window
        self.to_query = nn.Linear(config.hidden_size, config.inner_size, bias=False)
        self.to_key_value = nn.Linear(config.hidden_size, 2 * config.inner_size, bias=False)
        self.to_output = nn.Linear(config.inner_size, config.hidden_size, bias=False)

    def _split(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(
        self,
        states: torch.Tensor,
        patches: torch.Tensor | None,
        text_mask: torch.Tensor,
        tables: RotaryTables,
        latent_mask: torch.Tensor,
        updates_text: bool,
    ) -> torch.Tensor:
        """Attend: text tokens to text tokens, latents to everything.

        Args:
            states: ``(B, A + N, D)`` normed words, then latents.
            patches: ``(B, P, D)`` normed, or None.
            text_mask: ``(B, A)`` bool.
            tables: Of the words' positions.
            latent_mask: See :meth:`EncoderStack._latent_mask`.
            updates_text: False leaves the words out of the result.

        Returns:
            The update of words and latents ``(B, A + N, D)``, or of the latents alone ``(B, N, D)``.
        """
        num_words = text_mask.shape[1]
        source = states if patches is None else torch.cat([states, patches], dim=1)  # (B, S, D)
        key, value = (self._split(half) for half in self.to_key_value(source).chunk(2, dim=-1))
        text_key = rotate(key[:, :, :num_words], tables)
        key = torch.cat([text_key, key[:, :, num_words:]], dim=2)  # (B, H, S, head_dim)
        # One product for all that ask: few rows each, they would cost nearly as much again apart.
        query = self._split(self.to_query(states if updates_text else states[:, num_words:]))
        num_asking = num_words if updates_text else 0
        latent_mask = latent_mask if latent_mask.dtype == torch.bool else latent_mask.to(query.dtype)
        attended = F.scaled_dot_product_attention(query[:, :, num_asking:], key, value, attn_mask=latent_mask)
        if num_asking:
            text_query = rotate(query[:, :, :num_words], tables)
            read = self._attend_text(text_query, text_key, value[:, :, :num_words], text_mask)
            attended = torch.cat([read, attended], dim=2)
        return self.to_output(attended.transpose(1, 2).flatten(2))

    def _attend_text(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, text_mask: torch.Tensor
    ) -> torch.Tensor:
        """Self-attention of the text tokens, ``(B, H, A, head_dim)``; queries and keys are already rotated."""
        if 0 < self.window < text_mask.shape[1]:
            return windowed_attention(query, key, value, text_mask, self.window)
        # A row without any word must not softmax over nothing: it may see its own padding.
        mask = text_mask | ~text_mask.any(dim=1, keepdim=True)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])


class EncoderLayer(nn.Module):
    """Pre-norm layer over text tokens and latents, with the patches as read-only memory.

    Args:
        config: Widths.
        updates_text: False in the last layer, whose words nobody reads any more.
    """

    def __init__(self, config: CompressorConfig, updates_text: bool) -> None:
        super().__init__()
        self.updates_text = updates_text
        self.norm = nn.LayerNorm(config.hidden_size)
        self.attention = EncoderAttention(config)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        states: torch.Tensor,
        patches: torch.Tensor | None,
        text_mask: torch.Tensor,
        tables: RotaryTables,
        latent_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Return the updated text tokens and latents ``(B, A + N, D)``; of the last layer the latents ``(B, N, D)``."""
        normed_patches = None if patches is None else self.norm(patches)
        update = self.attention(self.norm(states), normed_patches, text_mask, tables, latent_mask, self.updates_text)
        states = states[:, states.shape[1] - update.shape[1] :] + update
        return states + self.feed_forward(states)


class EncoderStack(nn.Module):
    """All layers, after one normalisation per kind of input: word embeddings are far from unit variance.

    Args:
        config: Widths and depth.
    """

    def __init__(self, config: CompressorConfig) -> None:
        super().__init__()
        self.config = config
        self.norm_text = nn.LayerNorm(config.hidden_size)
        self.norm_patches = nn.LayerNorm(config.hidden_size)
        depth = config.num_layers
        self.layers = nn.ModuleList(EncoderLayer(config, updates_text=index < depth - 1) for index in range(depth))

    def forward(
        self,
        latents: torch.Tensor,
        text: torch.Tensor,
        text_mask: torch.Tensor | None,
        patches: torch.Tensor | None,
        patch_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See :meth:`.Compressor.forward`; ``latents`` is ``(B, N, D)``, ``patch_mask`` ``(B, P)``."""
        if text_mask is None:
            text_mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
        tables = rotary_tables(text_mask, self.config.head_dim, self.config.rope_theta)
        text = self.norm_text(text)
        patches = None if patches is None else self.norm_patches(patches)
        latent_mask = self._latent_mask(latents, text_mask, patches, patch_mask)
        states = torch.cat([text, latents], dim=1)  # (B, A + N, D)
        for layer in self.layers:
            states = layer(states, patches, text_mask, tables, latent_mask)
        return states

    def _latent_mask(
        self,
        latents: torch.Tensor,
        text_mask: torch.Tensor,
        patches: torch.Tensor | None,
        patch_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attention mask of the latents: bool ``(B, 1, 1, S)``; float ``(B, H, N, S)``, added, with local heads."""
        num_unordered = latents.shape[1] + (0 if patches is None else patches.shape[1])
        visible = torch.cat([text_mask, text_mask.new_ones(text_mask.shape[0], num_unordered)], dim=1)
        if patch_mask is not None:  # words, latents, patches
            visible = torch.cat([visible[:, : -patch_mask.shape[1]], patch_mask], dim=1)
        visible = visible[:, None, None]
        num_local, num_heads = self.config.num_local_heads, self.config.num_heads
        if not num_local:
            return visible
        bias = local_reading_bias(text_mask, latents.shape[1], num_local)  # (B, local, N, A)
        bias = F.pad(bias, (0, num_unordered), value=float("-inf"))
        # A sample without words has nothing to read in order: its local heads look around like the others.
        bias = torch.where(text_mask.any(dim=1)[:, None, None, None], bias, 0.0)
        bias = F.pad(bias, (0, 0, 0, 0, 0, num_heads - num_local))  # (B, H, N, S)
        return bias.masked_fill(~visible, float("-inf"))
