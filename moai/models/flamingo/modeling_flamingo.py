"""The Flamingo model: vision tower and resampler, a decoder, gated cross-attention between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    Cache,
    GenerationMixin,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.utils import TransformersKwargs, can_return_tuple

from ..auto_classes import register_model
from ..cache_names import CACHE_NAME, as_keyword, name_cache_for_peft, read_cache, resolve_cache
from ..forward_arguments import takes_arguments_of
from ..token_positions import number_tokens
from .configuration_flamingo import FlamingoConfig
from .gated_cross_attention import GatedCrossAttentionBlock, Media, count_media
from .injection import insert_blocks, looking_at
from .modeling_outputs import FlamingoCausalLMOutputWithPast, FlamingoModelOutputWithPast
from .resampler import PerceiverResampler
from .trainable_rows import TrainableRows, keep_gradients_of_rows


class FlamingoPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation common to the Flamingo models."""

    config_class = FlamingoConfig
    config: FlamingoConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = [CACHE_NAME, "looking"]
    _no_split_modules = ["GatedCrossAttentionBlock", "PerceiverLayer"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True
    #: Parts that are trained or rest as a whole -> what their parameters' names match.
    trainable_parts: ClassVar[dict[str, str]] = {
        "vision_tower": r"\bvision_tower\b",
        "resampler": r"\bresampler\b",
        "gated_blocks": r"\bgated_blocks\b",
        "decoder": r"\b(language_model|lm_head)\b",
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, PerceiverResampler):
            for table in (module.latents, module.frame_embs, module.media_time_embs):
                if table is not None:
                    init.normal_(table)
        elif isinstance(module, GatedCrossAttentionBlock):
            init.zeros_(module.attention_gate)
            init.zeros_(module.feed_forward_gate)
        elif isinstance(module, nn.Linear):  # the resampler's and the blocks'; towers and decoders have their own way
            init.kaiming_uniform_(module.weight, a=5**0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)


class FlamingoModel(FlamingoPreTrainedModel):
    """Flamingo without language modelling head.

    Args:
        config: What it is made of.
    """

    def __init__(self, config: FlamingoConfig) -> None:
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.resampler = PerceiverResampler(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.gated_blocks = nn.ModuleDict(
            {str(layer): GatedCrossAttentionBlock(config) for layer in config.cross_attention_layers}
        )
        insert_blocks(self.language_model, config.cross_attention_layers)
        self.post_init()

    def get_media_states(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Look at images.

        Args:
            pixel_values: ``(B, T, 3, H, W)``, or ``(B, T, F, 3, H, W)`` with F frames each.

        Returns:
            ``(B, T, N, V)``.

        Raises:
            ValueError: The shape is another.
        """
        if pixel_values.dim() not in (5, 6):
            raise ValueError(
                "`pixel_values` must have shape (B, T, 3, H, W), or (B, T, F, 3, H, W) for videos, got "
                f"{tuple(pixel_values.shape)}. Give every row its images in a dimension of their own."
            )
        if pixel_values.dim() == 5:
            pixel_values = pixel_values[:, :, None]
        batch_shape = pixel_values.shape[:3]
        outputs = self.vision_tower(pixel_values=pixel_values.flatten(0, 2).to(self.vision_tower.dtype))
        # Before the tower's last norm, which acts on its pooled output only: the released weights read these.
        features = outputs.last_hidden_state
        if self.config.vision_feature_select_strategy == "default":
            features = features[:, 1:]
        return self.resampler(features.unflatten(0, batch_shape))

    def _read_placeholders(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """``(B, L)``: the image token's id where its embedding stands, else -1."""
        image_token_id = self.config.image_token_id
        ids = torch.tensor([image_token_id, self.config.end_of_chunk_token_id], device=inputs_embeds.device)
        placeholder, other = self.get_input_embeddings()(ids)
        if torch.equal(placeholder, other):  # as in a model that nobody has trained
            raise ValueError(
                "expected `media_times` beside `inputs_embeds`: which image a token sees does not show in them while "
                "<image> and <|endofchunk|> have one embedding."
            )
        return torch.where((inputs_embeds == placeholder).all(dim=-1), image_token_id, -1)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        media_states: torch.FloatTensor | None = None,
        media_times: torch.LongTensor | None = None,
        media_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> FlamingoModelOutputWithPast:
        """Run the decoder over a prompt that looks at images.

        Args:
            input_ids: ``(B, L)`` with one image token per image.
            pixel_values: ``(B, T, 3, H, W)`` each row's images in reading order; ``(B, T, F, 3, H, W)`` for videos.
            attention_mask: ``(B, L)`` 1 = attend.
            position_ids: ``(B, L)``; None = counted from a row's first token on.
            cache: The decoder's cache.
            inputs_embeds: ``(B, L, D)`` instead of ``input_ids``.
            media_states: ``(B, T, N, V)`` resampled images, to skip tower and resampler.
            media_times: ``(B, L)`` number of images before or at each token; None = counted. Behind a filled cache a
                token goes on looking where the prompt's last one does.
            media_mask: ``(B, T)`` 0 = padding in place of an image; None = all are images.
            past_key_values: The cache's name before transformers 5.24; ``cache`` wins.
            **kwargs: Passed to the decoder (``use_cache``, ``output_hidden_states``, ...).

        Returns:
            Last hidden states, cache, the images and, when asked for, hidden states.

        Raises:
            ValueError: Images and image tokens do not match, or it does not show which image a token sees.
        """
        is_generating = media_times is not None
        cache = resolve_cache(cache, past_key_values, is_generating)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
        is_continuing = cache is not None and int(cache.get_seq_length()) > 0
        if media_states is None and pixel_values is not None:
            media_states = self.get_media_states(pixel_values)
        media = None
        if media_states is not None:
            num_tokens = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]
            if media_times is None:
                ids = self._read_placeholders(inputs_embeds) if input_ids is None else input_ids
                media_times = count_media(ids, self.config.image_token_id)
                # Behind a learned prefix (PEFT's prefix tuning) a cache is filled and the prompt still whole.
                if is_continuing and not _shows_all(media_times, media_states, media_mask):
                    raise ValueError(
                        "expected `media_times` beside a filled cache: which image a token sees does not show in it. "
                        "Go on with the last column of the former output's `media_times`."
                    )
                if (most := int(media_times.max())) > media_states.shape[1]:
                    raise ValueError(
                        f"expected an image per image token, got {most} tokens and {media_states.shape[1]} images in a "
                        "row. Give every row its images in reading order."
                    )
            if (num_virtual := num_tokens - media_times.shape[1]) > 0 and inputs_embeds is not None:
                media_times = F.pad(media_times, (num_virtual, 0))  # learned tokens (PEFT) stand in front of all images
            media = Media.from_times(media_states, media_times, self.config.only_attend_immediate_media, media_mask)
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            length = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]
            position_ids = number_tokens(attention_mask, length)
        with looking_at(self.gated_blocks, media):
            outputs = self.language_model(
                input_ids=input_ids,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                return_dict=True,
                **as_keyword(cache),
                **kwargs,
            )
        return FlamingoModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            **as_keyword(read_cache(outputs)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            media_states=media_states,
            media_times=media_times,
        )


def _shows_all(media_times: torch.Tensor, media_states: torch.Tensor, media_mask: torch.Tensor | None) -> bool:
    """Whether each row's tokens name all of its images, so that nothing can stand before them."""
    num_media = media_states.shape[1] if media_mask is None else media_mask.sum(dim=1)
    return bool((media_times[:, -1] == num_media).all())


class FlamingoForConditionalGeneration(FlamingoPreTrainedModel, GenerationMixin):
    """Flamingo with its language modelling head.

    Args:
        config: What it is made of.
    """

    def __init__(self, config: FlamingoConfig) -> None:
        super().__init__(config)
        self.model = FlamingoModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        embedding = self.model.language_model.get_input_embeddings()
        name = next(name for name, module in self.model.language_model.named_modules() if module is embedding)
        self._tied_weights_keys = {"lm_head.weight": f"model.language_model.{name}.weight"}
        self.post_init()

    @classmethod
    def from_backbones(cls, vision: Any, text: Any, **kwargs: Any) -> FlamingoForConditionalGeneration:
        """Build a new Flamingo from two pretrained folders or hub names; see :mod:`moai.models.flamingo.backbones`.

        Args:
            vision: Folder, hub name or loaded vision tower (CLIP, ...).
            text: Folder, hub name or loaded causal decoder (Llama and its like, MPT, GPT-NeoX).
            **kwargs: ``every``, ``dtype`` and the fields of :class:`FlamingoConfig`.

        Returns:
            The model, which says what its decoder says: all gates are closed.
        """
        from .backbones import build_from_backbones

        return build_from_backbones(cls, vision, text, **kwargs)

    def get_media_states(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """See :meth:`FlamingoModel.get_media_states`."""
        return self.model.get_media_states(pixel_values)

    def freeze_pretrained(self) -> TrainableRows:
        """Let the new parts alone learn: resampler, gated blocks and the embeddings of the two new tokens.

        Of the word embedding only the rows of ``<image>`` and ``<|endofchunk|>`` get gradients, all others zeros. (An
        optimizer must not decay its weights either.)

        Returns:
            What keeps the other rows' gradients zero; ``remove()`` ends that.
        """
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith(("model.resampler.", "model.gated_blocks.")))
        rows = (self.config.image_token_id, self.config.end_of_chunk_token_id)
        return keep_gradients_of_rows(self.get_input_embeddings(), rows)

    @can_return_tuple
    @takes_arguments_of(FlamingoModel.forward)
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        *,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> FlamingoCausalLMOutputWithPast:
        """Predict the next tokens.

        Args:
            input_ids: ``(B, L)`` with one image token per image.
            labels: ``(B, L)``, -100 = ignore; see :mod:`moai.models.flamingo.labels`.
            logits_to_keep: Compute only the last positions' logits.
            **kwargs: Those of :meth:`FlamingoModel.forward`.

        Returns:
            Loss, logits, cache, the images and, when asked for, hidden states.

        Raises:
            ValueError: Images and image tokens do not match, or it does not show which image a token sees.
        """
        outputs = self.model(input_ids=input_ids, return_dict=True, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        return FlamingoCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **as_keyword(read_cache(outputs)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            media_states=outputs.media_states,
            media_times=outputs.media_times,
        )

    # ------------------------------------------------------------------ generation

    def _maybe_prepare_encoder_kwargs_for_generation(
        self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Look at the images once, before anything is repeated per beam; note where each token of the prompt looks."""
        pixel_values = model_kwargs.pop("pixel_values", None)
        if model_kwargs.get("media_states") is None and pixel_values is not None:
            model_kwargs["media_states"] = self.get_media_states(pixel_values)
        if model_kwargs.get("media_states") is not None and model_kwargs.get("media_times") is None:
            ids = inputs_tensor if inputs_tensor.dim() == 2 else self.model._read_placeholders(inputs_tensor)
            times = count_media(ids, self.config.image_token_id)
            if (most := int(times.max())) > (given := model_kwargs["media_states"].shape[1]):
                raise ValueError(
                    f"expected an image per image token, got {most} tokens and {given} images in a row. Give every row "
                    "its images in reading order."
                )
            model_kwargs["media_times"] = times
        return model_kwargs

    @staticmethod
    def continue_inputs(
        output: FlamingoCausalLMOutputWithPast, inputs: Mapping[str, torch.Tensor], count: int
    ) -> dict[str, torch.Tensor]:
        """Arguments for ``count`` tokens behind a prompt: they look where its last token looks.

        Args:
            output: Of the prompt.
            inputs: Its arguments.
            count: Tokens behind it.
        """
        if output.media_states is None:
            return {}
        times = output.media_times[:, -1:].expand(-1, count)
        mask = {} if inputs.get("media_mask") is None else {"media_mask": inputs["media_mask"]}
        return {"media_states": output.media_states, "media_times": times, **mask}

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, *args: Any, media_times: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As in transformers; every new token looks at the image that the prompt's last token looks at."""
        inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        if media_times is not None:
            given = inputs["inputs_embeds"] if inputs.get("input_ids") is None else inputs["input_ids"]
            num_all = max(media_times.shape[1], input_ids.shape[1])
            last = media_times[:, -1:].expand(-1, num_all - media_times.shape[1])
            inputs["media_times"] = torch.cat([media_times, last], dim=1)[:, -given.shape[1] :]
        return name_cache_for_peft(self, inputs)


register_model(FlamingoConfig, FlamingoModel, FlamingoForConditionalGeneration)

__all__ = ["FlamingoForConditionalGeneration", "FlamingoModel", "FlamingoPreTrainedModel"]
