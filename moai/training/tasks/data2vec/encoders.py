"""Encoders as data2vec reads them: tokens with a mask for the student, outputs of layers for the teacher."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from moai.models.image_tokens import encode_image_tokens

__all__ = ["LayerResult", "TextEncoder", "TokenEncoder", "VisionEncoder"]

#: What of a layer is a target: its output, or that of its feed-forward part before it is added.
LayerResult = Literal["end", "fc"]


class TokenEncoder(nn.Module, ABC):
    """A model of transformers that makes a vector of every token.

    Args:
        model: The model.

    Attributes:
        model: As given.
        layers: Its layers.
        width: Channels C of a token.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.width: int = model.config.hidden_size

    @property
    def layers(self) -> nn.ModuleList:
        """The model's layers, lowest first."""
        count = self.model.config.num_hidden_layers
        lists = [module for module in self.model.modules() if isinstance(module, nn.ModuleList)]
        return next(found for found in lists if len(found) == count)

    @abstractmethod
    def forward(self, inputs: Any, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens after the last norm.

        Args:
            inputs: Pixels or ids.
            mask: ``(B, T)`` bool, True = not seen; None = all is seen.

        Returns:
            ``(B, T, C)``, class tokens left out.
        """

    @abstractmethod
    def feed_forward(self, layer: nn.Module) -> nn.Module:
        """Feed-forward part of a layer."""

    def trim(self, tokens: torch.Tensor, length: int) -> torch.Tensor:
        """Last ``length`` tokens of ``(B, n, C)``: patches stand behind class tokens."""
        return tokens[:, tokens.shape[1] - length :]

    @torch.no_grad()
    def layer_results(self, inputs: Any, kind: LayerResult) -> list[torch.Tensor]:
        """Outputs of all layers.

        Args:
            inputs: As :meth:`forward` takes them; all is seen.
            kind: Which.

        Returns:
            ``(B, T, C)`` per layer.
        """
        found: list[torch.Tensor] = []

        def keep(module: nn.Module, given: Any, output: Any) -> None:
            found.append(output[0] if isinstance(output, tuple) else output)

        with contextlib.ExitStack() as hooks:
            for layer in self.layers:
                part = layer if kind == "end" else self.feed_forward(layer)
                hooks.callback(part.register_forward_hook(keep).remove)
            length = self(inputs).shape[1]
        assert len(found) == len(self.layers)
        if kind == "fc":  # a layer's scale belongs to its branch
            scales = [getattr(layer, "lambda_2", None) for layer in self.layers]
            pairs = zip(found, scales, strict=True)
            found = [result if scale is None else scale * result for result, scale in pairs]
        return [self.trim(result, length) for result in found]


class VisionEncoder(TokenEncoder):
    """An image encoder: transformers' Data2VecVision, ViT, or a CLIP tower.

    Args:
        model: Its model; its own mask token is used where it has one.

    Attributes:
        mask_token: What stands for a patch that is not seen.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._convolution()
        self.own_mask_token = None
        if getattr(model.embeddings, "mask_token", None) is None:
            self.own_mask_token = nn.Parameter(0.02 * torch.randn(1, 1, self.width))

    @property
    def mask_token(self) -> nn.Parameter:
        """``(1, 1, C)``."""
        return self.model.embeddings.mask_token if self.own_mask_token is None else self.own_mask_token

    def _convolution(self) -> nn.Conv2d:
        found = [module for module in self.model.embeddings.modules() if isinstance(module, nn.Conv2d)]
        if len(found) != 1:
            raise ValueError(
                f"expected an image encoder that cuts its image into patches once (Data2VecVision, ViT, CLIP), got "
                f"{type(self.model).__name__} with {len(found)} convolutions."
            )
        return found[0]

    @contextlib.contextmanager
    def _hiding(self, mask: torch.Tensor | None) -> Iterator[None]:
        """Put the mask token in place of patches, before positions are added."""
        if mask is None:
            yield
            return

        def hide(module: nn.Module, given: Any, patches: torch.Tensor) -> torch.Tensor:
            hidden = mask.view(len(patches), 1, *patches.shape[2:]).type_as(patches)
            token = self.mask_token.view(1, -1, 1, 1).type_as(patches)
            return patches * (1 - hidden) + token * hidden

        handle = self._convolution().register_forward_hook(hide)
        try:
            yield
        finally:
            handle.remove()

    def forward(self, inputs: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """See :meth:`TokenEncoder.forward`; ``inputs`` are ``(B, 3, H, W)`` pixels, T patches."""
        patch = self._convolution().kernel_size
        num_patches = (inputs.shape[2] // patch[0]) * (inputs.shape[3] // patch[1])
        with self._hiding(mask):
            return self.trim(encode_image_tokens(self.model, inputs), num_patches)

    def feed_forward(self, layer: nn.Module) -> nn.Module:
        """See :meth:`TokenEncoder.feed_forward`."""
        return layer.output if hasattr(layer, "output") else layer.mlp


class TextEncoder(TokenEncoder):
    """A text encoder: transformers' Data2VecText.

    Args:
        model: Its model.
        mask_id: Id of the token that stands for one that is not seen.
    """

    def __init__(self, model: PreTrainedModel, mask_id: int) -> None:
        super().__init__(model)
        self.mask_id = mask_id

    def forward(self, inputs: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """See :meth:`TokenEncoder.forward`; ``inputs`` are ``(B, T)`` ids with padding.

        Padding is zero behind the embeddings, as in fairseq: instance normalisation sees it.
        """
        is_token = inputs != self.model.config.pad_token_id
        ids = inputs if mask is None else inputs.masked_fill(mask, self.mask_id)

        def blank(module: nn.Module, given: Any, embeddings: torch.Tensor) -> torch.Tensor:
            return embeddings * is_token[..., None]

        handle = self.model.embeddings.register_forward_hook(blank)
        try:
            return self.model(ids, attention_mask=is_token.long()).last_hidden_state
        finally:
            handle.remove()

    def feed_forward(self, layer: nn.Module) -> nn.Module:
        """See :meth:`TokenEncoder.feed_forward`: before dropout and norm."""
        return layer.output.dense
