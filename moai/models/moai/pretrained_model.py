"""Base class of MoAI models: loading, initialisation, checkpointing and the declarations that transformers reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers import initialization as init

from compressor import LatentTokens
from mixer import Gate, LowRankProjection

from ...checkpoints.io.adapter_files import (
    AdapterBase,
    check_adapter_fits,
    find_adapter_base,
    naming_broken_files,
    read_config,
    save_adapter,
)
from ...import_utils import require
from ..cache_names import CACHE_NAME
from ..quantization_choice import list_wanted_bits
from .configuration_moai import MoAIConfig
from .gradient_checkpointing import without_reentrance
from .injection import initialise_partial_lora
from .quantization import check_stored_quantization, make_dtype_uniform, with_default_skip_modules
from .remote_code import InstalledCode


class MoAIPreTrainedModel(InstalledCode, PreTrainedModel):
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
    #: What an adapter that was loaded with the model was made for.
    adapter_base: AdapterBase | None = None
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
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None = None, *args: Any, **kwargs: Any
    ) -> MoAIPreTrainedModel:
        """Load as every Hugging Face model; a bitsandbytes configuration quantises the decoder only.

        Args:
            pretrained_model_name_or_path: Folder or hub name of a model, or of an adapter: its base model is looked
                for relative to the adapter's folder, then among the bundled ones, then as a path or hub name.
            *args: See :meth:`transformers.PreTrainedModel.from_pretrained`.
            **kwargs: Likewise. ``quantization_config`` without ``llm_int8_skip_modules`` gets ours.
                ``quantize_all=True`` beside ``load_in_4bit`` or ``load_in_8bit``: vision tower, projector, compressor
                and head too. All that is not quantised has the ``dtype`` asked for, in a checkpoint that was saved
                quantised too.

        Returns:
            The model, in evaluation mode.

        Raises:
            ValueError: An adapter's base model is not there or does not fit it, a file of weights is damaged, or the
                checkpoint was saved in another quantisation than is asked for.
        """
        wanted = set(list_wanted_bits(kwargs))
        has_tied_head = False
        if kwargs.get("quantize_all"):
            stored = read_config(str(pretrained_model_name_or_path), kwargs.get("revision"))
            has_tied_head = any(each.get("tie_word_embeddings") for each in (stored, stored.get("text_config") or {}))
        kwargs = with_default_skip_modules(kwargs, has_tied_head)
        kwargs.setdefault("use_safetensors", True)  # never unpickle
        source, adapter, revision = pretrained_model_name_or_path, None, kwargs.get("revision")
        base = find_adapter_base(source, revision)
        if base is not None:
            require("peft", purpose="An adapter")
            adapter, source = source, base.name
            own = {"_adapter_model_path": str(adapter), "revision": revision or "main"}
            kwargs["adapter_kwargs"] = (kwargs.get("adapter_kwargs") or {}) | own
            kwargs["revision"] = base.revision or "main"
        elif (named := (kwargs.get("adapter_kwargs") or {}).get("_adapter_model_path")) is not None:
            adapter, base = named, AdapterBase(str(source), revision)  # PEFT's own folder, through an Auto class
            revision = kwargs["adapter_kwargs"].get("revision")
        with naming_broken_files(source, adapter):
            loaded = super().from_pretrained(source, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if base is not None:
            model.adapter_base = base
            check_adapter_fits(model, adapter, base, revision)
        if getattr(model, "is_quantized", False):
            check_stored_quantization(model, wanted)
            make_dtype_uniform(model)
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save as every Hugging Face model; one with an adapter in it saves the adapter alone.

        Args:
            save_directory: Folder.
            *args: See :meth:`transformers.PreTrainedModel.save_pretrained`.
            **kwargs: Likewise.

        Raises:
            ValueError: Several adapters are active, or the base of the adapter was never saved.
        """
        if not getattr(self, "_hf_peft_config_loaded", False):
            super().save_pretrained(save_directory, *args, **kwargs)
            return
        base = self.adapter_base or AdapterBase(self.name_or_path)  # `add_adapter`, `load_adapter`: what was loaded
        if not base.name:
            raise ValueError(
                "expected an adapter on a model that was loaded, got one on a model that is nowhere saved. Save the "
                "model before the adapter is added, and load it."
            )
        save_adapter(self, Path(save_directory), base)
        self.generation_config.save_pretrained(save_directory)

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
