"""Injection of the mixture into a Hugging Face decoder: subclasses of its attention, layer and decoder classes.

The decoder stays a plain LlamaModel, Qwen2Model, ...: same modules, same state-dict keys. Only the classes of its
layers and of their attention are exchanged for subclasses made here. A decoder passes unknown keyword arguments
down to every layer; ours is ``mixture``, everything one prompt's mixing needs. The mixer acts at the entrance of
``self_attn``, whose input is exactly what attention sees (normed hidden states); the residual stream is untouched.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import Cache
from transformers import initialization as init

from mixer import LayerRouting, Mixers, Routing, TokenStream, find_auxiliary_rows
from mixer.modeling_mixer import LanguageSources

from ...processing.token_roles import IMAGE_ROLE, LANGUAGE_ROLE, NO_ROLE
from ..derived_classes import derive_class
from .partial_lora import LowRankUpdate, image_positions_scope, insert_partial_lora
from .rotary import make_rotary_stateless


class RoutingLog:
    """Gate weights of one forward pass, by decoder layer.

    A plain object on purpose: FSDP2 copies the dicts and dataclasses that are handed to a layer, and what the layer
    writes into a copy is lost.
    """

    def __init__(self) -> None:
        self._by_layer: dict[int, LayerRouting] = {}

    def record(self, layer_idx: int, routing: LayerRouting) -> None:
        """Keep a layer's gate weights."""
        self._by_layer[layer_idx] = routing

    def in_order(self) -> tuple[LayerRouting, ...]:
        """Routing of the mixed layers, in the decoder's order."""
        return tuple(self._by_layer[layer] for layer in sorted(self._by_layer))


class PromptMemory:
    """What decoded tokens read of a mixed prompt; it lies with the decoder's cache.

    Beams of a sample share it, so that reordering them changes nothing. A plain object, as :class:`RoutingLog` is.

    Attributes:
        routing: The prompt's.
        is_mixed: ``(B, 1)`` bool, False for a sample with neither image nor predictions.
        sources: By decoder layer.
    """

    def __init__(self, routing: Routing, is_mixed: torch.Tensor) -> None:
        self.routing, self.is_mixed = routing, is_mixed
        self.sources: dict[int, LanguageSources] = {}

    @staticmethod
    def read(cache: Cache | None) -> PromptMemory | None:
        """What lies with a filled cache."""
        memory = getattr(cache, _MEMORY, None)
        is_refilled = memory is not None and not torch.compiler.is_compiling() and int(cache.get_seq_length()) == 0
        return None if is_refilled else memory

    def keep(self, cache: Cache | None) -> None:
        """Lay it with a cache."""
        if cache is not None:
            setattr(cache, _MEMORY, self)


_MEMORY = "moai_prompt_memory"


@dataclass
class Mixture:
    """Inputs of the mixers in one forward pass; passed down as an argument, never stored on a layer.

    Attributes:
        mixers: The model's mixers.
        auxiliary_states: ``(B, N, D)`` compressed auxiliary tokens, or None.
        image: The image stream.
        language: The prompt language stream.
        routing: How experts are chosen.
        log: Filled during the pass.
        answers: Answer tokens, which read auxiliary tokens and images; None where they bypass the mixture.
        memory: What those after them read: of this prompt, filled during the pass; beside a filled cache the prompt's.
    """

    mixers: Mixers
    auxiliary_states: torch.Tensor | None
    image: TokenStream
    language: TokenStream
    routing: Routing
    log: RoutingLog
    answers: TokenStream | None = None
    memory: PromptMemory | None = None

    @classmethod
    def from_roles(
        cls,
        mixers: Mixers,
        roles: torch.Tensor | None,
        auxiliary_states: torch.Tensor | None,
        routing: Routing,
        attention_mask: torch.Tensor | None = None,
    ) -> Mixture | None:
        """Build the mixture of a prompt from its token roles.

        Args:
            mixers: The model's mixers.
            roles: ``(B, L)`` ``mm_token_type_ids``, or None where nothing can be mixed.
            auxiliary_states: ``(B, N, D)`` or None; zeros for a sample without.
            routing: How experts are chosen.
            attention_mask: ``(B, L)`` spares padding, which otherwise counts as answer, to no one's harm.

        Returns:
            None where nothing is to be mixed (every decoding step of a model whose answers bypass the mixture).

        Raises:
            ValueError: If there is not one row of auxiliary states per sample.
        """
        if roles is None or not mixers.layer_indices:
            return None
        if auxiliary_states is not None and auxiliary_states.shape[0] != roles.shape[0]:
            raise ValueError(
                f"Expected `auxiliary_states` of {roles.shape[0]} samples, got {auxiliary_states.shape[0]}. Pass one "
                "auxiliary text per sample; an empty one where there is nothing to say."
            )
        is_image, is_language = roles == IMAGE_ROLE, roles == LANGUAGE_ROLE
        # A sample with neither image nor findings is plain text, alone or in a batch: the plain decoder's.
        is_mixed = is_image.any(dim=1, keepdim=True)
        if auxiliary_states is not None:
            is_mixed = is_mixed | find_auxiliary_rows(auxiliary_states).to(is_mixed.device)
        is_language = is_language & is_mixed
        image, language = TokenStream.from_roles(is_image), TokenStream.from_roles(is_language)
        if image.positions.shape[1] == 0 and language.positions.shape[1] == 0:
            return None
        mixture = cls(mixers, auxiliary_states, image, language, routing, RoutingLog())
        if mixers.mixes_answers:
            is_answer = (roles == NO_ROLE) & is_mixed
            if attention_mask is not None and attention_mask.shape == roles.shape:
                is_answer = is_answer & attention_mask.bool()
            mixture.answers = TokenStream.from_roles(is_answer)
            mixture.memory = PromptMemory(routing, is_mixed)
        return mixture

    @classmethod
    def from_cache(cls, mixers: Mixers, cache: Cache | None, length: int) -> Mixture | None:
        """Build the mixture of tokens that are decoded after a mixed prompt.

        Args:
            mixers: The model's mixers.
            cache: A filled cache.
            length: How many tokens are new.

        Returns:
            None where there is nothing that they may read.
        """
        memory = PromptMemory.read(cache)
        if memory is None:
            return None
        answers = TokenStream.from_roles(memory.is_mixed.expand(-1, length))
        nothing = TokenStream.from_roles(torch.zeros_like(memory.is_mixed.expand(-1, length)))
        return cls(mixers, None, nothing, nothing, memory.routing, RoutingLog(), answers, memory)

    def mix(self, hidden_states: torch.Tensor, layer_idx: int) -> torch.Tensor:
        """Mix ``(B, L, D)`` states at a decoder layer; layers without a mixer return them as they are."""
        if layer_idx not in self.mixers.layer_indices:
            return hidden_states
        if self.answers is None:
            return self._mix_prompt(hidden_states, layer_idx, None)
        if self.has_prompt:
            sources = self.mixers.read_sources(
                hidden_states, layer_idx, self.auxiliary_states, self.image, self.routing
            )
            self.memory.sources[layer_idx] = sources
            hidden_states = self._mix_prompt(hidden_states, layer_idx, sources)
        else:
            sources = self.memory.sources[layer_idx]
        return self.mixers.mix_answers(hidden_states, layer_idx, self.answers, sources, self.routing)

    @property
    def has_prompt(self) -> bool:
        """Whether there are tokens of a prompt."""
        return self.image.positions.shape[1] > 0 or self.language.positions.shape[1] > 0

    def _mix_prompt(self, hidden_states: torch.Tensor, layer_idx: int, sources: LanguageSources | None) -> torch.Tensor:
        mixed, chosen = self.mixers(
            hidden_states,
            layer_idx=layer_idx,
            auxiliary_states=self.auxiliary_states,
            image=self.image,
            language=self.language,
            routing=self.routing,
            sources=sources,
        )
        self.log.record(layer_idx, chosen)
        return mixed.to(hidden_states.device)


@cache
def mixing_attention_class(attention_class: type[nn.Module]) -> type[nn.Module]:
    """Subclass an attention class so that it mixes its input first."""

    def forward(
        self: nn.Module,
        hidden_states: torch.Tensor,
        *args: Any,
        mixture: Mixture | None = None,
        **kwargs: Any,
    ):
        if mixture is not None:
            hidden_states = mixture.mix(hidden_states, self.layer_idx)
        return attention_class.forward(self, hidden_states, *args, **kwargs)

    return derive_class(attention_class, mixing_attention_class, forward=forward, __module__=__name__)


@cache
def partial_lora_layer_class(layer_class: type[nn.Module]) -> type[nn.Module]:
    """Subclass a decoder layer so that its partial LoRA linears get the image positions."""

    def forward(
        self: nn.Module,
        hidden_states: torch.Tensor,
        *args: Any,
        image_positions: torch.Tensor | None = None,
        **kwargs: Any,
    ):
        with image_positions_scope(image_positions):
            return layer_class.forward(self, hidden_states, *args, **kwargs)

    return derive_class(layer_class, partial_lora_layer_class, forward=forward, __module__=__name__)


def initialise_partial_lora(module: nn.Module) -> bool:
    """Initialise a partial LoRA update through transformers' guarded functions; False for any other module."""
    if not isinstance(module, LowRankUpdate):
        return False
    init.normal_(module.lora_a, std=module.lora_a.shape[1] ** -0.5)
    init.zeros_(module.lora_b)
    return True


@cache
def partial_lora_decoder_class(decoder_class: type[nn.Module]) -> type[nn.Module]:
    """Subclass a decoder so that it initialises the partial LoRA updates: transformers asks the decoder."""

    def _init_weights(self: nn.Module, module: nn.Module) -> None:
        if not initialise_partial_lora(module):
            decoder_class._init_weights(self, module)

    # The module stays the original's: transformers reads its source to learn about attention implementations.
    fields = {"_init_weights": _init_weights, "__module__": decoder_class.__module__}
    return derive_class(decoder_class, partial_lora_decoder_class, **fields)


def prepare_decoder(decoder: nn.Module, plora_rank: int, plora_alpha: float) -> None:
    """Prepare a freshly built Hugging Face decoder for the mixture, in place.

    Args:
        decoder: LlamaModel, MistralModel, Qwen2Model, Qwen3Model, ...
        plora_rank: Rank of partial LoRA, 0 for none.
        plora_alpha: Its scale numerator.

    Raises:
        ValueError: If the decoder's layers have no ``self_attn``.
    """
    for layer in decoder.layers:
        attention = getattr(layer, "self_attn", None)
        if attention is None or not hasattr(attention, "layer_idx"):
            raise ValueError(
                f"Expected decoder layers with a `self_attn` that knows its layer_idx, got {type(layer).__name__}. "
                "Use a decoder of the Llama, Mistral, Qwen2 or Qwen3 family."
            )
        # Every layer's, not only the mixed ones': attention kernels must never see our argument.
        attention.__class__ = mixing_attention_class(type(attention))
    make_rotary_stateless(decoder)
    if plora_rank:
        insert_partial_lora(decoder, plora_rank, plora_alpha)
        for layer in decoder.layers:
            layer.__class__ = partial_lora_layer_class(type(layer))
        decoder.__class__ = partial_lora_decoder_class(type(decoder))
