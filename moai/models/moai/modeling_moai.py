"""MoAI: a vision tower, a compressor, a mixture and any Hugging Face decoder."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Unpack

import torch
from torch import nn
from transformers import AutoModel, Cache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import TransformersKwargs, can_return_tuple

from compressor import Compressor
from mixer import Mixers, resolve_routing

from ...processing.token_roles import IMAGE_ROLE, NO_ROLE
from ..auto_classes import register_model
from ..cache_names import as_keyword, read_cache, resolve_cache
from ..forward_arguments import takes_arguments_of
from .configuration_moai import MoAIConfig
from .generation import MoAIGenerationMixin
from .image_rows import find_different_rows, passes_together, take_rows
from .injection import Mixture, prepare_decoder
from .losses import ignore_placeholders, loss_without_placeholders
from .modeling_outputs import MoAICausalLMOutputWithPast, MoAIModelOutputWithPast
from .pretrained_model import MoAIPreTrainedModel
from .projector import MoAIMultiModalProjector, place_image_features
from .roles import add_virtual_tokens, infer_positions, locate_answers, read_placeholders, resolve_roles


class MoAIModel(MoAIPreTrainedModel):
    """The multimodal body without language modelling head.

    Args:
        config: What it is made of.
    """

    def __init__(self, config: MoAIConfig) -> None:
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = MoAIMultiModalProjector(config)
        self.compressor = Compressor(config.compressor_config)
        self.mixers = Mixers(config.mixer_config)
        self.language_model = AutoModel.from_config(config.text_config)
        prepare_decoder(self.language_model, config.plora_rank, config.plora_alpha)
        self.post_init()

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode images.

        Args:
            pixel_values: ``(images, 3, H, W)`` normalised pixels.
            vision_feature_layer: Hidden state of the tower, or as many as the projector reads; None = the
                configuration's.
            vision_feature_select_strategy: ``default`` drops the class token, ``full`` keeps it; None = the
                configuration's.
            **kwargs: Passed to the vision tower.

        While nothing is learned, an image that stands there several times (several questions about it in a batch)
        passes the tower once. Images smaller than the tower's own, as a coarser map is, have its positions
        interpolated.

        Returns:
            The tower's output; its ``pooler_output`` is ``(images, patches, D)``, projected to the decoder's width.

        Raises:
            ValueError: See :meth:`MoAIConfig.resolve_vision_features`.
        """
        layers, strategy = self.config.resolve_vision_features(vision_feature_layer, vision_feature_select_strategy)
        # (images, tokens, vision width); post-normalisation is not applied by CLIP's last_hidden_state
        if layers != (-1,):
            kwargs["output_hidden_states"] = True
        if pixel_values.shape[-1] != getattr(self.config.vision_config, "image_size", pixel_values.shape[-1]):
            kwargs["interpolate_pos_encoding"] = True
        given, places = find_different_rows(pixel_values)
        outputs = self.vision_tower(given, **kwargs | {"return_dict": True})
        if places is not None:
            outputs = take_rows(outputs, places)
        states = [outputs.last_hidden_state if layer == -1 else outputs.hidden_states[layer] for layer in layers]
        features = torch.cat(states, dim=-1)
        if strategy == "default":
            features = features[:, 1:]
        outputs.pooler_output = self.multi_modal_projector(features)
        return outputs

    def get_image_and_map_features(
        self, pixel_values: torch.Tensor | None, auxiliary_pixel_values: torch.Tensor | None, **kwargs: Any
    ) -> tuple[BaseModelOutputWithPooling | None, torch.Tensor | None]:
        """Encode images and maps in one pass of the vision tower, where that is faster.

        Args:
            pixel_values: ``(images, 3, H, W)``.
            auxiliary_pixel_values: ``(B, 3, H, W)``.
            **kwargs: Those of :meth:`get_image_features`.

        Returns:
            What :meth:`get_image_features` returns of the images, and the maps' ``(B, patches, D)``; None and None
            where each is to pass alone.
        """
        if not passes_together(pixel_values, auxiliary_pixel_values):
            return None, None
        both = self.get_image_features(torch.cat([pixel_values, auxiliary_pixel_values]), return_dict=True, **kwargs)
        count = len(pixel_values)
        return take_rows(both, slice(0, count)), both.pooler_output[count:]

    def get_auxiliary_states(
        self,
        auxiliary_input_ids: torch.Tensor | None = None,
        auxiliary_attention_mask: torch.Tensor | None = None,
        auxiliary_pixel_values: torch.Tensor | None = None,
        auxiliary_source_mask: torch.Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        map_features: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """Compress the auxiliary tokens: embeddings of the verbalization and patch features of the panoptic map.

        Args:
            auxiliary_input_ids: ``(B, A)`` ids of the verbalisation.
            auxiliary_attention_mask: ``(B, A)`` 1 = word, 0 = padding.
            auxiliary_pixel_values: ``(B, 3, H, W)`` painted panoptic map, normalised like an image.
            auxiliary_source_mask: ``(B, 2)`` 1 = the sample has words, has a map; 0 = it has none, which is not the
                same as empty ones. None = every sample has what is given.
            vision_feature_layer: How the map is read; see :meth:`get_image_features`.
            vision_feature_select_strategy: Likewise.
            map_features: ``(B, patches, D)`` instead of ``auxiliary_pixel_values``, to skip the vision tower.

        Returns:
            ``(B, N, D)``, zeros for a sample without words and map; None when there is nothing auxiliary.
        """
        embeds, patches = None, map_features
        if auxiliary_input_ids is not None:
            embeds = self.get_input_embeddings()(auxiliary_input_ids)  # (B, A, D)
        if patches is None and auxiliary_pixel_values is not None:
            patches = self.get_image_features(
                auxiliary_pixel_values, vision_feature_layer, vision_feature_select_strategy, return_dict=True
            ).pooler_output
        if embeds is None and patches is None:
            return None
        if embeds is None:
            embeds, auxiliary_attention_mask = patches[:, :0], None  # a map without words
        if auxiliary_source_mask is None:
            return self.compressor(embeds, auxiliary_attention_mask, patches)
        has_words, has_map = auxiliary_source_mask.bool().unbind(dim=1)  # (B,) each
        if auxiliary_attention_mask is None:
            auxiliary_attention_mask = torch.ones_like(embeds[..., 0], dtype=torch.long)
        words = auxiliary_attention_mask * has_words[:, None]
        states = self.compressor(embeds, words, patches, has_map)
        return states.masked_fill(~(has_words | has_map)[:, None, None], 0.0)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        mm_token_type_ids: torch.LongTensor | None = None,
        auxiliary_input_ids: torch.LongTensor | None = None,
        auxiliary_attention_mask: torch.Tensor | None = None,
        auxiliary_pixel_values: torch.FloatTensor | None = None,
        auxiliary_source_mask: torch.Tensor | None = None,
        auxiliary_states: torch.FloatTensor | None = None,
        image_features: torch.FloatTensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        routing: Any = None,
        output_routing: bool = False,
        is_answer: torch.BoolTensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MoAIModelOutputWithPast:
        """Run the decoder over a prompt with its images and its verbalization.

        Args:
            input_ids: ``(B, L)``, one image token per patch.
            pixel_values: ``(images, 3, H, W)`` in the order of their placeholders.
            attention_mask: ``(B, L)`` 1 = attend.
            position_ids: ``(B, L)``.
            cache: The decoder's cache.
            inputs_embeds: ``(B, L, D)`` instead of ``input_ids``.
            mm_token_type_ids: ``(B, L)`` 1 image, 2 prompt language, 0 padding or answer; inferred when None.
            auxiliary_input_ids: ``(B, A)`` ids of the verbalization.
            auxiliary_attention_mask: ``(B, A)``.
            auxiliary_pixel_values: ``(B, 3, H, W)`` painted panoptic maps.
            auxiliary_source_mask: ``(B, 2)`` 1 = the sample has auxiliary text, has a map; None = all have.
            auxiliary_states: ``(B, N, D)`` the compressor's output, to skip it; zeros for a sample without.
            image_features: ``(images, patches, D)`` projected features, to skip the vision tower.
            vision_feature_layer: How images and maps are read; see :meth:`get_image_features`.
            vision_feature_select_strategy: Likewise.
            mm_encoder_outputs: What ``generate`` encoded beforehand.
            routing: None, a mode, a mapping or weights; see :func:`mixer.resolve_routing`.
            output_routing: Return the gate weights per mixer layer, stream and token.
            is_answer: ``(B, L)`` bool, True = keep the token out of the mixture, whatever its role.
            past_key_values: The cache's name before transformers 5.24; ``cache`` wins.
            **kwargs: Passed to the decoder (``use_cache``, ``output_hidden_states``, ...).

        Returns:
            Last hidden states, cache, the encoded images and verbalization and, when asked for, routing.

        Raises:
            ValueError: If image tokens and image features do not match, or shapes do not fit.
        """
        cache = resolve_cache(cache, past_key_values)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)  # (B, L, D)
        for name in ("output_attentions", "output_hidden_states"):  # the parts read their own configurations only
            if kwargs.get(name) is None and getattr(self.config, name, None):
                kwargs[name] = True

        image_outputs, map_features = (mm_encoder_outputs or {}).get("image"), None
        read = {
            "vision_feature_layer": vision_feature_layer,
            "vision_feature_select_strategy": vision_feature_select_strategy,
        }
        if image_features is None and image_outputs is None and pixel_values is not None:
            chosen = {name: kwargs[name] for name in ("output_attentions", "output_hidden_states") if name in kwargs}
            maps = auxiliary_pixel_values if auxiliary_states is None else None
            image_outputs, map_features = self.get_image_and_map_features(pixel_values, maps, **read, **chosen)
            if image_outputs is None:
                image_outputs = self.get_image_features(pixel_values, **read, return_dict=True, **chosen)
        if image_features is None and image_outputs is not None:
            image_features = image_outputs.pooler_output
            if not isinstance(image_features, torch.Tensor):
                image_features = torch.stack(list(image_features))
        if auxiliary_states is None:
            auxiliary_states = self.get_auxiliary_states(
                auxiliary_input_ids,
                auxiliary_attention_mask,
                auxiliary_pixel_values,
                auxiliary_source_mask,
                **read,
                map_features=map_features,
            )

        placeholder = self.config.image_token_id
        roles = mm_token_type_ids if input_ids is not None else add_virtual_tokens(mm_token_type_ids, inputs_embeds)
        if roles is not None and roles.shape != inputs_embeds.shape[:2]:
            shape = tuple(inputs_embeds.shape[:2])
            raise ValueError(f"`mm_token_type_ids` must have the tokens' shape {shape}, got {tuple(roles.shape)}.")
        if image_features is None and auxiliary_states is None:
            if input_ids is not None:
                roles = None  # words alone are the plain decoder's: nothing to look for, which would ask the device
        elif roles is None and (cache is None or inputs_embeds.shape[1] > 1):  # one token beside a cache is decoded
            ids = input_ids
            if ids is None and image_features is not None:
                ids = read_placeholders(inputs_embeds, self.get_input_embeddings(), placeholder)
            roles = resolve_roles(ids, attention_mask, cache, placeholder)
        # Where images are, which an image behind an answer is too: it has no role in the mixture.
        is_image = input_ids == placeholder if input_ids is not None else None if roles is None else roles == IMAGE_ROLE
        if image_features is not None:
            inputs_embeds = place_image_features(inputs_embeds, is_image, image_features)
        if roles is not None and is_answer is not None:
            roles = roles.masked_fill(is_answer, NO_ROLE)

        routing = resolve_routing(routing, self.config.mixer_config)
        mixture = Mixture.from_roles(self.mixers, roles, auxiliary_states, routing, attention_mask)
        if mixture is None:
            mixture = Mixture.from_cache(self.mixers, cache, inputs_embeds.shape[1])
        if mixture is not None:
            kwargs["mixture"] = mixture
        elif roles is not None and is_answer is not None:
            warnings.warn(
                "`labels` begin with the first token of every sample, so that nothing may enter the mixture: "
                "compressor and mixers learn nothing from this batch. Take the loss on answers only (prompt and "
                "completion, or TRL's `assistant_only_loss`)."
            )
        if self.config.plora_rank and roles is not None:
            kwargs["image_positions"] = is_image
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            position_ids = infer_positions(attention_mask, inputs_embeds.shape[1])

        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **as_keyword(cache),
            **kwargs,
        )
        if mixture is not None and mixture.memory is not None:
            mixture.memory.keep(read_cache(outputs))
        chosen = mixture.log.in_order() if mixture is not None else ()
        return MoAIModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            **as_keyword(read_cache(outputs)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_outputs=image_outputs,
            image_hidden_states=image_features,
            auxiliary_hidden_states=auxiliary_states,
            routing=chosen if output_routing else None,
        )


class MoAIForConditionalGeneration(MoAIGenerationMixin, MoAIPreTrainedModel, GenerationMixin):
    """MoAI with its language modelling head.

    Args:
        config: What it is made of.
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}  # and the decoder's own, which post_init gathers

    def __init__(self, config: MoAIConfig) -> None:
        super().__init__(config)
        self.model = MoAIModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_backbones(cls, vision: Any, text: Any, **kwargs: Any) -> MoAIForConditionalGeneration:
        """Build a new MoAI from two pretrained folders or hub names; see :func:`moai.models.moai.backbones`.

        Args:
            vision: Folder, hub name or loaded vision tower (CLIP, SigLIP, ...).
            text: Folder, hub name or loaded causal decoder (Llama, SmolLM2, InternLM2, Qwen2, Qwen3, Mistral).
            **kwargs: ``compressor``, ``mixer`` and the other fields of :class:`MoAIConfig`; ``dtype``.

        Returns:
            The model; the backbones' weights are untouched, compressor, mixers and projector are new.
        """
        from .backbones import build_from_backbones

        return build_from_backbones(cls, vision, text, **kwargs)

    @property
    def loss_function(self) -> Callable[..., torch.Tensor]:
        """The loss of transformers, which never asks for image placeholders; see :func:`loss_without_placeholders`."""
        return partial(loss_without_placeholders, super().loss_function, self.config.image_token_id)

    @loss_function.setter
    def loss_function(self, value: Callable[..., torch.Tensor]) -> None:
        self._loss_function = value

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """See :meth:`MoAIModel.get_image_features`."""
        return self.model.get_image_features(
            pixel_values, vision_feature_layer, vision_feature_select_strategy, **kwargs
        )

    def get_auxiliary_states(self, *args: Any, **kwargs: Any) -> torch.Tensor | None:
        """See :meth:`MoAIModel.get_auxiliary_states`."""
        return self.model.get_auxiliary_states(*args, **kwargs)

    @can_return_tuple
    @takes_arguments_of(MoAIModel.forward, but=("is_answer",))
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        *,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        suppress_image_token: bool = False,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> MoAICausalLMOutputWithPast:
        """Predict the next tokens.

        Args:
            input_ids: ``(B, L)``, one image token per patch.
            labels: ``(B, L)``, -100 = ignore; image placeholders are ignored too. From a row's first label on (here
                or in ``shift_labels``) no expert reads anything, whatever ``mm_token_type_ids`` say.
            logits_to_keep: Compute only the last positions' logits.
            suppress_image_token: Give the image placeholder, a slot and never a word to say, the lowest logit.
                ``generate`` does; a loss must not see it.
            cache: The decoder's cache.
            past_key_values: The cache's name before transformers 5.24; ``cache`` wins.
            **kwargs: Those of :meth:`MoAIModel.forward`.

        Returns:
            Loss, logits, cache and, when asked for, hidden states and routing.

        Raises:
            ValueError: If image tokens and image features do not match, or shapes do not fit.
        """
        placeholder = self.config.image_token_id
        learned = [ignore_placeholders(given, placeholder) for given in (labels, kwargs.get("shift_labels"))]
        outputs = self.model(
            input_ids=input_ids,
            is_answer=locate_answers(*learned),
            return_dict=True,
            **as_keyword(resolve_cache(cache, past_key_values, is_generating=suppress_image_token)),
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        if suppress_image_token:  # in place, sharded heads refuse
            index = logits.new_full((1,), placeholder, dtype=torch.long)
            logits = logits.index_fill(-1, index, torch.finfo(logits.dtype).min)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        return MoAICausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **as_keyword(read_cache(outputs)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_outputs=outputs.image_outputs,
            image_hidden_states=outputs.image_hidden_states,
            auxiliary_hidden_states=outputs.auxiliary_hidden_states,
            routing=outputs.routing,
        )


register_model(MoAIConfig, MoAIModel, MoAIForConditionalGeneration)

__all__ = ["MoAIForConditionalGeneration", "MoAIModel", "MoAIPreTrainedModel"]
