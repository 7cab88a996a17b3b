"""The compressor: any number of auxiliary tokens in, a fixed number of latents out (paper, section 3.1)."""

from __future__ import annotations

import torch
from torch import nn

from .configuration_compressor import CompressorConfig
from .encoder import EncoderStack
from .perceiver import PerceiverStack

STACKS: dict[str, type[nn.Module]] = {"encoder": EncoderStack, "perceiver": PerceiverStack}


class LatentTokens(nn.Module):
    """The learned latents; a module of their own so that nothing else initialises them.

    Args:
        num_latents: Number N.
        hidden_size: Width D.
    """

    def __init__(self, num_latents: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_latents, hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the latents from a unit normal, as the release's resampler does."""
        nn.init.normal_(self.weight)

    def forward(self, batch_size: int) -> torch.Tensor:
        """Repeat the latents for a batch: ``(B, N, D)``."""
        return self.weight.unsqueeze(0).expand(batch_size, -1, -1)


class Compressor(nn.Module):
    """Learned latents, a stack that lets them read the auxiliary tokens, a final LayerNorm.

    Args:
        config: Architecture and sizes.
    """

    def __init__(self, config: CompressorConfig) -> None:
        super().__init__()
        self.config = config
        self.latents = LatentTokens(config.num_latents, config.hidden_size)
        self.stack = STACKS[config.architecture](config)
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(
        self,
        text_embeds: torch.Tensor,
        text_mask: torch.Tensor | None = None,
        patch_embeds: torch.Tensor | None = None,
        patch_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compress auxiliary tokens.

        Args:
            text_embeds: ``(B, A, D)`` word embeddings of the verbalisation; A may be 0.
            text_mask: ``(B, A)`` True / 1 = a word, False / 0 = padding; None = all words.
            patch_embeds: ``(B, P, D)`` features of the segmentation map's patches, row by row; None = no map.
            patch_mask: ``(B,)`` True / 1 = the sample has a map, False / 0 = its patches are not read; None = all have.

        Returns:
            ``(B, N, D)`` compressed auxiliary tokens. Padding changes nothing.

        Raises:
            ValueError: If a width or a shape does not fit.
        """
        self._check(text_embeds, text_mask, patch_embeds, patch_mask)
        text_mask = None if text_mask is None else text_mask.bool()
        if patch_mask is not None:
            patch_mask = None if patch_embeds is None else patch_mask.bool()[:, None].expand(patch_embeds.shape[:2])
        latents = self.latents(text_embeds.shape[0]).to(text_embeds.dtype)
        return self.norm(self.stack(latents, text_embeds, text_mask, patch_embeds, patch_mask))

    def _check(
        self,
        text_embeds: torch.Tensor,
        text_mask: torch.Tensor | None,
        patch_embeds: torch.Tensor | None,
        patch_mask: torch.Tensor | None,
    ) -> None:
        width = self.config.hidden_size
        for name, embeds in (("text_embeds", text_embeds), ("patch_embeds", patch_embeds)):
            if embeds is not None and (embeds.dim() != 3 or embeds.shape[-1] != width):
                raise ValueError(f"`{name}` must have shape (batch, tokens, {width}), got {tuple(embeds.shape)}.")
        if patch_embeds is not None and patch_embeds.shape[0] != text_embeds.shape[0]:
            raise ValueError(
                f"Expected as many maps as auxiliary texts, got {patch_embeds.shape[0]} and {text_embeds.shape[0]}."
            )
        if text_mask is not None and text_mask.shape != text_embeds.shape[:2]:
            raise ValueError(
                f"`text_mask` must have the words' shape {tuple(text_embeds.shape[:2])}, got {tuple(text_mask.shape)}."
            )
        if patch_mask is not None and patch_mask.shape != text_embeds.shape[:1]:
            raise ValueError(
                f"`patch_mask` must say for each of {text_embeds.shape[0]} samples whether it has a map, got shape "
                f"{tuple(patch_mask.shape)}."
            )
