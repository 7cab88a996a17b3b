"""Drafts of a text-only decoder for assisted generation: it reads the prompt's words, and no image."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers.generation.candidate_generator import AssistedCandidateGenerator


class TextAssistantCandidateGenerator(AssistedCandidateGenerator):
    """Candidates of an assistant that is shown the prompt without its image placeholders.

    Args:
        image_token_id: The placeholder's id, which the assistant need not know.
        vocab_size: Of the model that checks the drafts.
        input_ids: ``(1, L)`` the prompt.
        assistant_model: A causal language model of the same vocabulary, the placeholder aside.
        generation_config: Of the whole call.
        model_kwargs: Of the model that checks; only ``attention_mask`` is for the assistant too.
        logits_processor: Of the whole call.
    """

    def __init__(
        self,
        image_token_id: int,
        vocab_size: int,
        input_ids: torch.Tensor,
        assistant_model: PreTrainedModel,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        logits_processor: LogitsProcessorList | None = None,
    ) -> None:
        self.image_token_id, self.vocab_size = image_token_id, vocab_size
        mask = model_kwargs.get("attention_mask")
        given = {} if mask is None else {"attention_mask": mask[:, self._is_word(input_ids)]}
        super().__init__(input_ids, assistant_model, generation_config, given, logits_processor=logits_processor)

    def _is_word(self, input_ids: torch.Tensor) -> torch.Tensor:
        return input_ids[0] != self.image_token_id

    def get_candidates(self, input_ids: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Draft the next tokens.

        Args:
            input_ids: ``(1, L)`` everything so far.
            **kwargs: Without effect.

        Returns:
            ``(1, L + new)`` ids and ``(1, new, vocab_size)`` scores; None where there is room for no token.
        """
        input_ids = input_ids.to(self.assistant_model.device)
        words = input_ids[:, self._is_word(input_ids)]
        min_new_tokens, max_new_tokens = self._calculate_new_tokens(input_ids)
        if max_new_tokens == 0:
            return input_ids, None
        self._update_past_and_masks(words)
        arguments = self._prepare_generation_args(words, min_new_tokens, max_new_tokens)
        drafted, scores = self._generate_candidates(arguments)
        # A head without the placeholder's row never says it.
        scores = F.pad(scores, (0, self.vocab_size - scores.shape[-1]), value=torch.finfo(scores.dtype).min)
        return torch.cat([input_ids, drafted[:, words.shape[1] :]], dim=1), scores


__all__ = ["TextAssistantCandidateGenerator"]
