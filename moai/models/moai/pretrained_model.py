"""Base class of MoAI models: loading, initialisation, checkpointing and the declarations that transformers reads."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers import initialization as init

from compressor import LatentTokens
from mixer import Gate, LowRankProjection

from .cache_names import CACHE_NAME
from .configuration_moai import MoAIConfig
from .gradient_checkpointing import without_reentrance
from .injection import initialise_partial_lora
from .quantization import with_default_skip_modules


class MoAIPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation common to the MoAI models."""

    config_class = MoAIConfig
    config: MoAIConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = [CACHE_NAME, "mixture"]
    _no_split_modules = ["MixerLayer", "EncoderLayer", "PerceiverLayer"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    #: Parts that are trained or rest as a whole, in the order of the paper's figure 3 -> what their parameters' names
    #: match; a parameter that matches none is the decoder's.
    trainable_parts: ClassVar[dict[str, str]] = {
        "vision_tower": r"\bvision_tower\b",
        "projector": r"\bmulti_modal_projector\b",
        "compressor": r"\bcompressor\b",
        "mixers": r"\bmixers\b(?!.*\b(image|language)_gate\b)",
        "gates": r"\bmixers\b.*\b(image|language)_gate\b",
        "decoder": r"\b(language_model|lm_head)\b",
    }

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> MoAIPreTrainedModel:
        """Load as every Hugging Face model; a bitsandbytes configuration quantises the decoder only.

        Args:
            *args: See :meth:`transformers.PreTrainedModel.from_pretrained`.
            **kwargs: Likewise. ``quantization_config`` without ``llm_int8_skip_modules`` gets ours.

        Returns:
            The model, in evaluation mode.
        """
        kwargs = with_default_skip_modules(kwargs)
        kwargs.setdefault("use_safetensors", True)  # never unpickle
        return super().from_pretrained(*args, **kwargs)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Module:
        """Resize the vocabulary; see :meth:`transformers.PreTrainedModel.resize_token_embeddings`.

        Raises:
            ValueError: If the image placeholder's id would be lost.
        """
        if new_num_tokens is not None and new_num_tokens <= self.config.image_token_id:
            raise ValueError(
                f"Expected more tokens than `image_token_id` = {self.config.image_token_id}, got {new_num_tokens}. "
                "Move the placeholder to a lower id first."
            )
        return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Any = checkpoint, **kwargs: Any
    ) -> None:
        """Both of transformers' ways to switch checkpointing on end here; see :func:`without_reentrance`."""
        if enable:
            gradient_checkpointing_func = without_reentrance(gradient_checkpointing_func)
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, LowRankProjection):
            down_std, up_std = module.init_stds
            init.normal_(module.down, std=down_std)
            init.normal_(module.up, std=up_std)
        elif isinstance(module, Gate):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, LatentTokens):
            init.normal_(module.weight)
        elif isinstance(module, nn.Linear):
            # Compressor and projector meet features of unit variance: keep it, whatever the width.
            init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif not initialise_partial_lora(module):
            super()._init_weights(module)


__all__ = ["MoAIPreTrainedModel"]
