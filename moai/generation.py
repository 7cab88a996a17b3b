"""How MoAI generates: pictures and findings are encoded once per call, the mixture runs on the prompt only."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig

from mixer import resolve_routing

from .roles import infer_roles

AUXILIARY_INPUTS = (
    "auxiliary_input_ids",
    "auxiliary_attention_mask",
    "auxiliary_pixel_values",
    "auxiliary_embeds",
)
PREFILL_ONLY = ("auxiliary_states", "image_features", "routing", "routing_log")


class MoAIGenerationMixin:
    """Overrides of :class:`transformers.GenerationMixin`'s hooks; greedy, sampling, beams and streaming are its own."""

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, *args: Any, output_routing: bool = False, **kwargs: Any):
        """Generate as every Hugging Face model does.

        Args:
            inputs: Prompt ids; usually given as ``input_ids``.
            *args: See :meth:`transformers.GenerationMixin.generate`.
            output_routing: Also return the prompt's gate weights; needs ``return_dict_in_generate=True``.
            **kwargs: Likewise.

        Returns:
            Prompt and new ids ``(B, L + new)``, or an output object; with ``output_routing`` its ``routing`` is a
            tuple of :class:`mixer.LayerRouting`.

        Raises:
            ValueError: For chunked prefill or a text-only assistant, which would answer wrongly.
        """
        if not output_routing:
            return super().generate(inputs, *args, **kwargs)
        log: list[Any] = []
        output = super().generate(inputs, *args, routing_log=log, **kwargs)
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
        if assistant is not None and not isinstance(assistant, MoAIGenerationMixin):
            raise ValueError(
                f"Expected a MoAI as assistant, got the text-only {type(assistant).__name__}: it is blind. "
                "Use another MoAI, or prompt_lookup_num_tokens."
            )
        super()._validate_generation_mode(generation_mode, generation_config, generation_mode_kwargs)

    def _maybe_prepare_encoder_kwargs_for_generation(
        self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Before anything is expanded per beam: roles, image features, auxiliary states and routing, once."""
        if model_kwargs.get("mm_token_type_ids") is None and "inputs_embeds" not in model_kwargs:
            mask = model_kwargs.get("attention_mask")
            if mask is None or mask.dim() == 2:
                model_kwargs["mm_token_type_ids"] = infer_roles(inputs_tensor, self.config.image_token_id, mask)
        auxiliary = {name: model_kwargs.pop(name, None) for name in AUXILIARY_INPUTS}
        if model_kwargs.get("auxiliary_states") is None:
            model_kwargs["auxiliary_states"] = self.get_auxiliary_states(**auxiliary)
        mixer = self.config.mixer_config
        routing = resolve_routing(
            model_kwargs.get("routing"),
            num_layers=len(mixer.layers),
            default_mode=mixer.routing,
            default_top_k=mixer.top_k,
        )
        if routing.weights is not None:  # one row per sample, so that expansion per beam repeats the right rows
            rows = inputs_tensor.shape[0] if routing.weights.shape[0] == 1 else routing.weights.shape[0]
            model_kwargs["routing"] = routing.weights.expand(rows, -1, -1, -1)
        else:
            model_kwargs["routing"] = routing
        return super()._maybe_prepare_encoder_kwargs_for_generation(inputs_tensor, model_kwargs, *args, **kwargs)

    def prepare_inputs_for_generation(
        self, *args: Any, is_first_iteration: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Drop the prompt's inputs once it is in the cache; without a cache every step sees it again."""
        inputs = super().prepare_inputs_for_generation(*args, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in PREFILL_ONLY:
                inputs.pop(name, None)
            # Role 0 for every decoded token: several at once only when candidates are verified.
            length = inputs["input_ids"].shape[1] if inputs.get("input_ids") is not None else 1
            if length == 1:
                inputs.pop("mm_token_type_ids", None)
        return inputs


__all__ = ["MoAIGenerationMixin"]
