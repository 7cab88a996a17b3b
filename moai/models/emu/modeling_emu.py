"""The Emu model: vision tower and causal former, a decoder, heads for words and for an image's embeddings."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

import torch
from torch import nn
from transformers import (
    AutoModel,
    Cache,
    GenerationMixin,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.utils import TransformersKwargs, can_return_tuple

from ...processing.token_roles import IGNORE_INDEX
from ..auto_classes import register_model
from ..cache_names import CACHE_NAME, as_keyword, read_cache, resolve_cache
from ..forward_arguments import takes_arguments_of
from ..token_positions import number_tokens
from .causal_former import CausalFormer
from .configuration_emu import EmuConfig
from .image_generation import GeneratedParts, generate_parts, regress_image
from .losses import compute_regression_loss, find_regression_pairs
from .modeling_outputs import EmuCausalLMOutputWithPast, EmuModelOutputWithPast


class EmuPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation common to the Emu models."""

    config_class = EmuConfig
    config: EmuConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = [CACHE_NAME]
    _no_split_modules = ["CausalFormer"]
    _supports_sdpa = True
    _supports_attention_backend = True
    #: Parts that are trained or rest as a whole -> what their parameters' names match.
    trainable_parts: ClassVar[dict[str, str]] = {
        "vision_tower": r"\bvision_(tower|norm)\b",
        "causal_former": r"\bcausal_former\b",
        "decoder": r"\b(language_model|lm_head)\b",
        "regression_head": r"\bregression_head\b",
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, CausalFormer):
            init.normal_(module.causal_tokens, std=0.02)
        else:
            super()._init_weights(module)


class EmuModel(EmuPreTrainedModel):
    """Emu without its heads.

    Args:
        config: What it is made of.
    """

    def __init__(self, config: EmuConfig) -> None:
        super().__init__(config)
        # The tower's last norm and pooling are CLIP's: Emu reads the last layer and has a norm of its own.
        unpooled = {"add_pooling_layer": False} if config.vision_config.model_type == "beit" else {}
        self.vision_tower = AutoModel.from_config(config.vision_config, **unpooled)
        self.vision_norm = nn.LayerNorm(config.vision_config.hidden_size, eps=1e-6)
        self.causal_former = CausalFormer(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    # ------------------------------------------------------------------ images

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Look at images.

        Args:
            pixel_values: ``(P, 3, H, W)``.

        Returns:
            ``(P, num_image_tokens, D)``.
        """
        features = self.vision_tower(pixel_values=pixel_values.to(self.vision_tower.dtype)).last_hidden_state
        return self.causal_former(self.vision_norm(features))  # the class token is kept: (P, 1 + patches, V)

    def count_images(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Images of each row, ``(B,)`` int64.

        Raises:
            ValueError: A row has a part of an image.
        """
        counts, length = (input_ids == self.config.image_token_id).sum(dim=1), self.config.num_image_tokens
        if (counts % length).any():
            raise ValueError(
                f"expected {length} <image> tokens per image, got {counts.tolist()} in the rows of the batch. "
                "Sequences must not be cut inside an image."
            )
        return counts // length

    def embed_images(self, pixel_values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Look at each row's images; padding behind them is not looked at.

        Args:
            pixel_values: ``(B, T, 3, H, W)`` in reading order.
            counts: ``(B,)`` images of each row.

        Returns:
            ``(B, T, num_image_tokens, D)``, zeros for padding.

        Raises:
            ValueError: The shape is another, or a row has too few.
        """
        if pixel_values.dim() != 5 or len(pixel_values) != len(counts):
            raise ValueError(
                f"`pixel_values` must have shape (B, T, 3, H, W) with {len(counts)} rows, got "
                f"{tuple(pixel_values.shape)}. Give every row its images in a dimension of their own."
            )
        is_image = _mask_images(counts, pixel_values.shape[1])
        found = self.encode_images(pixel_values[is_image])
        embeds = found.new_zeros(*is_image.shape, *found.shape[1:])
        embeds[is_image] = found
        return embeds

    def embed(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embeddings of a mixed sequence.

        Args:
            input_ids: ``(B, L)``.
            pixel_values: ``(B, T, 3, H, W)``.
            image_embeds: ``(B, T, num_image_tokens, D)`` instead.

        Returns:
            ``(B, L, D)``.

        Raises:
            ValueError: Images and their tokens do not match.
        """
        embeds, counts = self.get_input_embeddings()(input_ids), self.count_images(input_ids)
        if not counts.any():
            return embeds
        if image_embeds is None:
            if pixel_values is None:
                raise ValueError(f"expected images for {counts.tolist()} image spans, got none. Give `pixel_values`.")
            image_embeds = self.embed_images(pixel_values, counts)
        is_image = _mask_images(counts, image_embeds.shape[1])
        is_token = (input_ids == self.config.image_token_id)[..., None]
        return embeds.masked_scatter(is_token, image_embeds[is_image].to(embeds.dtype))

    # ------------------------------------------------------------------ the sequence

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        image_embeds: torch.FloatTensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> EmuModelOutputWithPast:
        """Run the decoder over texts with images.

        Args:
            input_ids: ``(B, L)``; an image is ``[IMG]``, its ``<image>`` tokens, ``[/IMG]``.
            pixel_values: ``(B, T, 3, H, W)`` each row's images in reading order, padding behind them; a video's
                frames are images.
            attention_mask: ``(B, L)`` 1 = attend.
            position_ids: ``(B, L)``; None = counted from a row's first token on.
            cache: The decoder's cache.
            inputs_embeds: ``(B, L, D)`` instead of ``input_ids``, images in their places; then no image's embeddings
                are learned.
            image_embeds: ``(B, T, num_image_tokens, D)`` instead of ``pixel_values``.
            past_key_values: The cache's name before transformers 5.24; ``cache`` wins.
            **kwargs: Passed to the decoder (``use_cache``, ``output_hidden_states``, ...).

        Returns:
            Last hidden states, cache, what the decoder read and, when asked for, hidden states.

        Raises:
            ValueError: Images and their tokens do not match.
        """
        cache = resolve_cache(cache, past_key_values)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
        if inputs_embeds is not None and (pixel_values is not None or image_embeds is not None):
            raise ValueError(
                "expected `input_ids` with images: embeddings do not show where they stand. A learned prompt, which "
                "hands over embeddings, cannot be put before an Emu; train a LoRA."
            )
        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids, pixel_values, image_embeds)
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            position_ids = number_tokens(attention_mask, inputs_embeds.shape[1])
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            return_dict=True,
            **as_keyword(cache),
            **kwargs,
        )
        return EmuModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            **as_keyword(read_cache(outputs)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            inputs_embeds=inputs_embeds,
        )


def _mask_images(counts: torch.Tensor, num_given: int) -> torch.Tensor:
    """``(B, T)`` which of T images per row are no padding."""
    if (most := int(counts.max())) > num_given:
        raise ValueError(
            f"expected an image per image span, got {most} spans and {num_given} images in a row. Give every row its "
            "images in reading order."
        )
    return torch.arange(num_given, device=counts.device)[None] < counts[:, None]


class EmuForConditionalGeneration(EmuPreTrainedModel, GenerationMixin):
    """Emu with its heads: for the next word, and for the next embedding of an image.

    Args:
        config: What it is made of.
    """

    def __init__(self, config: EmuConfig) -> None:
        super().__init__(config)
        width = config.text_config.hidden_size
        self.model = EmuModel(config)
        self.lm_head = nn.Linear(width, config.text_config.vocab_size, bias=False)
        self.regression_head = nn.Linear(width, width, bias=False)
        embedding = self.model.language_model.get_input_embeddings()
        name = next(name for name, module in self.model.language_model.named_modules() if module is embedding)
        self._tied_weights_keys = {"lm_head.weight": f"model.language_model.{name}.weight"}
        # Nobody teaches these as words, and an image's tokens stand for embeddings that only `generate_image` makes.
        self.generation_config.suppress_tokens = [
            config.image_start_token_id,
            config.image_end_token_id,
            config.image_token_id,
        ]
        self.post_init()

    @classmethod
    def from_backbones(cls, vision: Any, text: Any, **kwargs: Any) -> EmuForConditionalGeneration:
        """Build a new Emu from two pretrained folders or hub names; see :mod:`moai.models.emu.backbones`.

        Args:
            vision: Folder, hub name or loaded vision tower (CLIP, BEiT, ...).
            text: Folder, hub name or loaded causal decoder (Llama and its like).
            **kwargs: ``dtype`` and the fields of :class:`EmuConfig`.
        """
        from .backbones import build_from_backbones

        return build_from_backbones(cls, vision, text, **kwargs)

    @can_return_tuple
    @takes_arguments_of(EmuModel.forward)
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        *,
        labels: torch.LongTensor | None = None,
        learns_images: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> EmuCausalLMOutputWithPast:
        """Predict the next elements.

        Args:
            input_ids: ``(B, L)``; an image is ``[IMG]``, its ``<image>`` tokens, ``[/IMG]``.
            labels: ``(B, L)``, -100 = ignore; see :func:`.losses.label_text`.
            learns_images: ``(B,)`` bool, the rows whose images are learned beside ``labels``; None = all.
            logits_to_keep: Compute only the last positions' logits.
            **kwargs: Those of :meth:`EmuModel.forward`.

        Returns:
            Losses, logits, cache and, when asked for, hidden states.

        Raises:
            ValueError: Images and their tokens do not match.
        """
        outputs = self.model(input_ids=input_ids, return_dict=True, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = text_loss = regression_loss = None
        if labels is not None:
            if (labels[:, 1:] != IGNORE_INDEX).any():
                text_loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
            else:  # images alone
                text_loss = logits.sum() * 0
            loss = text_loss
            if input_ids is not None and self.config.regression_weight:
                regression_loss = self._regress(outputs, input_ids, learns_images)
                loss = text_loss + self.config.regression_weight * regression_loss
        return EmuCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **as_keyword(read_cache(outputs)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            text_loss=text_loss,
            regression_loss=regression_loss,
            inputs_embeds=outputs.inputs_embeds,
        )

    def _regress(
        self, outputs: EmuModelOutputWithPast, input_ids: torch.Tensor, is_learned: torch.Tensor | None
    ) -> torch.Tensor:
        sources, targets = find_regression_pairs(input_ids, self.config)
        if is_learned is not None:
            sources, targets = sources & is_learned[:, None], targets & is_learned[:, None]
        predicted = self.regression_head(outputs.last_hidden_state[sources])
        return compute_regression_loss(predicted, outputs.inputs_embeds, targets)

    # ------------------------------------------------------------------ generation

    def generate_image(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        pixel_values: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        use_cache: bool = True,
    ) -> torch.Tensor:
        """Embeddings of the image that follows each prompt; see :func:`.image_generation.regress_image`."""
        return regress_image(
            self, input_ids, attention_mask, pixel_values=pixel_values, image_embeds=image_embeds, use_cache=use_cache
        )

    def generate_parts(self, *, max_new_tokens: int, max_new_images: int = 4, **inputs: Any) -> GeneratedParts:
        """Text with images in between, after one prompt; see :func:`.image_generation.generate_parts`.

        Args:
            max_new_tokens: Longest answer in tokens; an image's do not count.
            max_new_images: When so many are drawn, the rest is text.
            **inputs: ``input_ids``, ``pixel_values`` or ``image_embeds``, and arguments of ``generate``.
        """
        given = {n: inputs.pop(n) for n in ("input_ids", "pixel_values", "image_embeds") if n in inputs}
        inputs.pop("attention_mask", None)  # one prompt has no padding
        return generate_parts(self, given, max_new_tokens=max_new_tokens, max_new_images=max_new_images, **inputs)

    def _maybe_prepare_encoder_kwargs_for_generation(
        self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Look at the images once, before anything is repeated per beam."""
        pixel_values = model_kwargs.pop("pixel_values", None)
        if model_kwargs.get("image_embeds") is None and pixel_values is not None:
            if inputs_tensor.dim() != 2:
                raise ValueError("expected `input_ids` with `pixel_values`: they show where images stand.")
            counts = self.model.count_images(inputs_tensor)
            model_kwargs["image_embeds"] = self.model.embed_images(pixel_values, counts)
        return model_kwargs


register_model(EmuConfig, EmuModel, EmuForConditionalGeneration)

__all__ = ["EmuForConditionalGeneration", "EmuModel", "EmuPreTrainedModel"]
