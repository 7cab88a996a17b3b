"""Generation: images and verbalizations are encoded once per call, the mixture runs on the prompt only."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from transformers import Cache, GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mixer import resolve_routing

from ..cache_names import CACHE_NAME, as_keyword, name_cache_for_peft, resolve_cache
from .roles import infer_roles
from .text_assistant import TextAssistantCandidateGenerator

AUXILIARY_INPUTS = (
    "auxiliary_input_ids",
    "auxiliary_attention_mask",
    "auxiliary_pixel_values",
    "auxiliary_source_mask",
)
VISION_OPTIONS = ("vision_feature_layer", "vision_feature_select_strategy")
PREFILL_ONLY = ("auxiliary_states", "image_features", "mm_token_type_ids", "routing", "output_routing")


class MoAIGenerationMixin:
    """Overrides of :class:`transformers.GenerationMixin`'s hooks; greedy, sampling, beams and streaming are its own."""

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, *args: Any, output_routing: bool = False, **kwargs: Any):
        """Generate as every Hugging Face model does.

        Args:
            inputs: Prompt ids; usually given as ``input_ids``.
            *args: See :meth:`transformers.GenerationMixin.generate`.
            output_routing: Also return the prompt's gate weights; needs ``return_dict_in_generate=True``.
            **kwargs: Likewise; a ``cache`` to continue from may also be called ``past_key_values``.

        Returns:
            Prompt and new ids ``(B, L + new)``, or an output object; with ``output_routing`` its ``routing`` is a
            tuple of :class:`mixer.LayerRouting`.

        Raises:
            ValueError: For chunked prefill, which would answer wrongly, or an assistant that does not fit.
        """
        if (cache := resolve_cache(kwargs.pop("cache", None), kwargs.pop("past_key_values", None))) is not None:
            kwargs |= as_keyword(cache)
        if not output_routing:
            return super().generate(inputs, *args, **kwargs)
        log: list[Any] = []
        output = super().generate(inputs, *args, output_routing=True, routing_log=log, **kwargs)
        if isinstance(output, torch.Tensor):
            raise ValueError(
                "`output_routing=True` needs `return_dict_in_generate=True`: a bare tensor has no place for it."
            )
        output["routing"] = log[0] if log else None
        return output

    def _validate_generation_mode(
        self,
        generation_mode: Any,
        generation_config: GenerationConfig,
        generation_mode_kwargs: dict[str, Any],
    ) -> None:
        if generation_config.prefill_chunk_size is not None:
            raise ValueError(
                "MoAI mixes the whole prompt at once: expected `prefill_chunk_size=None`, got "
                f"{generation_config.prefill_chunk_size}. Leave it out."
            )
        assistant = generation_mode_kwargs.get("assistant_model")
        if isinstance(assistant, MoAIGenerationMixin):
            self._check_assistant(assistant)
        elif assistant is not None and assistant.config.get_text_config().vocab_size == self.config.image_token_id:
            # The plain decoder, as it was before the placeholder was added: the same tokenizer all the same.
            generation_mode_kwargs = {n: v for n, v in generation_mode_kwargs.items() if n != "assistant_model"}
        super()._validate_generation_mode(generation_mode, generation_config, generation_mode_kwargs)

    def _check_assistant(self, assistant: MoAIGenerationMixin) -> None:
        """Check that a draft model accepts our image features and auxiliary states."""
        ours, theirs = self.config.text_config.hidden_size, assistant.config.text_config.hidden_size
        if ours != theirs:
            raise ValueError(
                f"Expected an assistant of our decoder's hidden_size {ours}, whose features it shares, got {theirs}. "
                "Use a text-only decoder of the same vocabulary, or prompt_lookup_num_tokens."
            )

    def _get_candidate_generator(
        self,
        generation_config: GenerationConfig,
        input_ids: torch.Tensor,
        inputs_tensor: torch.Tensor,
        logits_processor: LogitsProcessorList,
        model_kwargs: dict[str, Any],
        assistant_model: PreTrainedModel | None = None,
        target_tokenizer: Any = None,
        assistant_tokenizer: Any = None,
    ) -> CandidateGenerator:
        is_text_only = assistant_model is not None and not isinstance(assistant_model, MoAIGenerationMixin)
        if is_text_only and assistant_tokenizer is None:
            return TextAssistantCandidateGenerator(
                self.config.image_token_id,
                self.config.text_config.vocab_size,
                input_ids,
                assistant_model,
                generation_config,
                model_kwargs,
                logits_processor,
            )
        if is_text_only:  # another tokenizer reads the prompt's text anew
            model_kwargs = {}
        return super()._get_candidate_generator(
            generation_config=generation_config,
            input_ids=input_ids,
            inputs_tensor=inputs_tensor,
            logits_processor=logits_processor,
            model_kwargs=model_kwargs,
            assistant_model=assistant_model,
            target_tokenizer=target_tokenizer,
            assistant_tokenizer=assistant_tokenizer,
        )

    def _maybe_prepare_encoder_kwargs_for_generation(
        self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Compute roles, image features, auxiliary states and routing once, before anything is expanded per beam."""
        cache = model_kwargs.get(CACHE_NAME)
        if cache is not None and int(cache.get_seq_length()) > 0:
            return self._bypass_mixture(inputs_tensor, model_kwargs, int(cache.get_seq_length()))
        auxiliary = {name: model_kwargs.pop(name, None) for name in AUXILIARY_INPUTS}
        if model_kwargs.get("auxiliary_states") is None:
            read = {name: model_kwargs[name] for name in VISION_OPTIONS if name in model_kwargs}
            images, maps, features = model_kwargs.get("pixel_values"), auxiliary.get("auxiliary_pixel_values"), None
            if not any(model_kwargs.get(name) is not None for name in ("image_features", "mm_encoder_outputs")):
                outputs, features = self.model.get_image_and_map_features(images, maps, **read)
                if outputs is not None:
                    del model_kwargs["pixel_values"]
                    model_kwargs["mm_encoder_outputs"] = {"image": outputs}
            model_kwargs["auxiliary_states"] = self.get_auxiliary_states(**auxiliary, **read, map_features=features)
        if (features := model_kwargs.pop("image_features", None)) is not None:
            # In this form they are expanded sample by sample, however many images each has.
            model_kwargs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=features)}
        sources = ("auxiliary_states", "mm_encoder_outputs", "pixel_values")
        has_sources = any(model_kwargs.get(name) is not None for name in sources)
        if has_sources and model_kwargs.get("mm_token_type_ids") is None and "inputs_embeds" not in model_kwargs:
            mask = model_kwargs.get("attention_mask")
            model_kwargs["mm_token_type_ids"] = infer_roles(inputs_tensor, self.config.image_token_id, mask)
        # Only what every step must repeat: an export of the prompt's pass takes tensors, not our objects.
        if model_kwargs.get("routing") is not None or self.config.mixer_config.routing == "random_expert":
            model_kwargs["routing"] = self._resolve_routing(model_kwargs.get("routing"), inputs_tensor.shape[0])
        return super()._maybe_prepare_encoder_kwargs_for_generation(inputs_tensor, model_kwargs, *args, **kwargs)

    def _bypass_mixture(
        self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any], num_cached: int
    ) -> dict[str, Any]:
        """Continue from a filled cache: the images and verbalizations are in it, and nothing is mixed."""
        if inputs_tensor.dim() == 2 and (inputs_tensor[:, num_cached:] == self.config.image_token_id).any():
            raise ValueError(
                "Expected no new image beside a filled cache, whose prompt has been mixed already, got one. Generate "
                f"from the whole conversation without `{CACHE_NAME}`."
            )
        for name in (*AUXILIARY_INPUTS, *PREFILL_ONLY, "pixel_values", "mm_encoder_outputs"):
            model_kwargs.pop(name, None)
        return model_kwargs

    def _resolve_routing(self, routing: Any, batch_size: int) -> Any:
        """One routing for the whole call; weights get a row per sample, so that beams repeat the right ones."""
        routing = resolve_routing(routing, self.config.mixer_config)
        if routing.weights is None:
            return routing
        if routing.weights.shape[0] not in (1, batch_size):
            raise ValueError(
                f"Expected routing weights for a batch of {batch_size}, got {routing.weights.shape[0]} rows. Pass one "
                "per sample."
            )
        return routing.weights.expand(batch_size, -1, -1, -1)

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        *args: Any,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool = False,
        routing_log: list[Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Drop the prompt's inputs once they are in the cache; without a cache every step gets them again.

        `routing_log` goes past the model: `_update_model_kwargs_for_generation` fills it.
        """
        cache = resolve_cache(cache, past_key_values)
        num_all = input_ids.shape[1]
        num_new = kwargs.get("next_sequence_length") or num_all
        if num_new == num_all > 1 and cache is not None and not is_first_iteration:
            is_first_iteration = int(cache.get_seq_length()) == 0  # an assistant's prefill is not told so
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in PREFILL_ONLY:  # whatever follows the prompt is role 0 by itself
                kwargs.pop(name, None)
        roles = kwargs.get("mm_token_type_ids")
        if roles is not None and (missing := num_all - roles.shape[1]) > 0:
            kwargs["mm_token_type_ids"] = F.pad(roles, (0, missing))  # decoded tokens: role 0
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            *args,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **as_keyword(cache),
            **kwargs,
        )
        # In the head, not by a logits processor: beams would count the share of a word that cannot be said.
        return name_cache_for_peft(self, inputs) | {"suppress_image_token": True}

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        if (log := model_kwargs.get("routing_log")) is not None:
            log.append(outputs.routing)
        return super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)


__all__ = ["MoAIGenerationMixin"]
