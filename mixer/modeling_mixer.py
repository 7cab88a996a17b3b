"""The mixture: image and language streams, six experts, two gates (paper, figure 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from .configuration_mixer import NUM_EXPERTS, MixerConfig
from .experts import Expert, KeysValues
from .gating import Gate
from .routing import IMAGE, LANGUAGE, Routing, StreamRouting


@dataclass
class TokenStream:
    """Positions of one stream's tokens in a padded batch, packed to the front of a batch of their own.

    Attributes:
        positions: ``(B, N)`` int64 positions in the sequence, N the largest count in the batch.
        mask: ``(B, N)`` bool, True = a token, False = padding; None when every row is full.
    """

    positions: torch.Tensor
    mask: torch.Tensor | None

    @classmethod
    def from_roles(cls, is_member: torch.Tensor) -> TokenStream:
        """Locate the tokens of a stream. One host synchronisation per prompt, not per layer.

        A traced graph (torch.compile, torch.export) cannot ask how many there are: its streams are as long as the
        sequence, and the mask says which slots are tokens.

        Args:
            is_member: ``(B, L)`` bool.
        """
        counts = is_member.sum(dim=1)
        # A stable sort of "not a member" brings members to the front in reading order.
        positions = (~is_member).to(torch.uint8).argsort(dim=1, stable=True)
        if not torch.compiler.is_compiling():
            longest, shortest = int(counts.max()), int(counts.min())
            positions = positions[:, :longest]
            if shortest == longest:
                return cls(positions, None)
        return cls(positions, torch.arange(positions.shape[1], device=counts.device) < counts[:, None])

    @property
    def key_mask(self) -> torch.Tensor | None:
        """The mask for attention: rows without any token keep slot 0, so that softmax stays finite."""
        if self.mask is None or self.mask.shape[1] == 0:
            return self.mask
        return torch.cat([self.mask[:, :1] | ~self.mask.any(1, keepdim=True), self.mask[:, 1:]], dim=1)

    @property
    def is_present(self) -> torch.Tensor:
        """``(B, 1)`` bool: does the sample have any token of this stream?"""
        if self.mask is not None:
            return self.mask.any(dim=1, keepdim=True)
        present = self.positions.shape[1] > 0
        return torch.full((self.positions.shape[0], 1), present, device=self.positions.device)

    def to(self, device: torch.device) -> TokenStream:
        """Move to the device of the hidden states: layers of one model may be on several."""
        if self.positions.device == device:
            return self
        return TokenStream(self.positions.to(device), None if self.mask is None else self.mask.to(device))

    def _rows(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Positions in the flattened batch: whole rows move at once, several times faster than ``gather`` does."""
        batch, length = hidden_states.shape[:2]
        first = torch.arange(batch, device=self.positions.device)[:, None] * length
        return (self.positions + first).flatten()

    def gather(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Take the stream's tokens: ``(B, L, D) -> (B, N, D)``."""
        tokens = hidden_states.flatten(0, 1).index_select(0, self._rows(hidden_states))
        return tokens.unflatten(0, self.positions.shape)

    def scatter(self, hidden_states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Write ``(B, N, D)`` tokens into a copy of ``(B, L, D)`` hidden states; padding slots are dropped."""
        if self.mask is not None:
            # Padding slots point at other positions of their row: give those back what stands there. Each of
            # them is a distinct position outside the stream, so no index occurs twice.
            tokens = torch.where(self.mask[..., None], tokens, self.gather(hidden_states))
        rows, tokens = self._rows(hidden_states), tokens.to(hidden_states.dtype)
        return hidden_states.flatten(0, 1).index_copy(0, rows, tokens.flatten(0, 1)).view_as(hidden_states)


class Source(NamedTuple):
    """What an expert reads.

    Attributes:
        tokens: ``(B, S, D)``, or the keys and values that the expert has made of them; None where no sample has any.
        mask: ``(B, S)`` bool, True = read, at least one per row; None = all.
        is_present: ``(B, 1)`` bool: whether the sample has any.
    """

    tokens: torch.Tensor | KeysValues | None
    mask: torch.Tensor | None
    is_present: torch.Tensor

    def projected_by(self, expert: Expert, is_read: bool) -> Source:
        """The same as an expert's keys and values; without tokens where it does not read them."""
        is_read = is_read and self.tokens is not None and self.tokens.shape[1] > 0
        return self._replace(tokens=expert.project(self.tokens) if is_read else None)


#: What the language stream and the answers after it read at one layer: auxiliary tokens, image.
LanguageSources = tuple[Source, Source]


@dataclass
class LayerRouting:
    """Gate weights of one mixer layer, as ``output_routing=True`` returns them.

    Attributes:
        layer_idx: Zero-based decoder layer.
        image: ``(B, num_image, 3)`` float32 weights (auxiliary, language, image), zero on padding.
        language: ``(B, num_language, 3)`` float32 weights (auxiliary, image, language), zero on padding.
        image_mask: ``(B, num_image)`` bool, True = a token.
        language_mask: ``(B, num_language)`` bool, True = a token.
    """

    layer_idx: int
    image: torch.Tensor
    language: torch.Tensor
    image_mask: torch.Tensor
    language_mask: torch.Tensor


for _structure in (TokenStream, LayerRouting, Routing):
    # So that a mixer can be exported by itself.
    torch.export.register_dataclass(_structure, serialized_type_name=f"moai.{_structure.__name__}")


def find_auxiliary_rows(auxiliary_states: torch.Tensor) -> torch.Tensor:
    """Find the samples of a batch that have auxiliary tokens: all others have a row of zeros.

    Args:
        auxiliary_states: ``(B, N, D)`` compressed auxiliary tokens.

    Returns:
        ``(B, 1)`` bool.
    """
    return (auxiliary_states != 0).flatten(1).any(dim=1, keepdim=True)


class MixerLayer(nn.Module):
    """Mixes auxiliary, image and language features at the entrance of one decoder layer's attention.

    Args:
        config: Sizes of the experts.
    """

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        self.image_experts = nn.ModuleList(_build_expert(config) for _ in range(NUM_EXPERTS))
        self.language_experts = nn.ModuleList(_build_expert(config) for _ in range(NUM_EXPERTS))
        self.image_gate = Gate(config.hidden_size)
        self.language_gate = Gate(config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        auxiliary_states: torch.Tensor | None,
        image: TokenStream,
        language: TokenStream,
        routing: Routing,
        layer: int,
        sources: LanguageSources | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mix the prompt's tokens; every other position passes unchanged.

        Args:
            hidden_states: ``(B, L, D)`` what the decoder layer's attention is about to see (normed).
            auxiliary_states: ``(B, N, D)`` compressed auxiliary tokens; None when there are none. A sample without
                any has a row of zeros.
            image: The image stream.
            language: The prompt language stream.
            routing: How experts are chosen.
            layer: This mixer's ordinal among the mixer layers.
            sources: What :meth:`read_sources` made of the same; None = made here.

        Returns:
            Mixed ``(B, L, D)`` states, image weights ``(B, Ni, 3)``, language weights ``(B, Nl, 3)``.
        """
        image, language = image.to(hidden_states.device), language.to(hidden_states.device)
        auxiliary, image_source = _gather_sources(hidden_states, auxiliary_states, image)
        language_source = Source(language.gather(hidden_states), language.key_mask, language.is_present)

        mixed_image, image_weights = _mix_stream(
            image_source.tokens,
            (auxiliary, language_source, image_source),
            self.image_experts,
            self.image_gate,
            routing.of_stream(layer, IMAGE),
        )
        mixed_language, language_weights = _mix_stream(
            language_source.tokens,
            (*(sources or (auxiliary, image_source)), language_source),
            self.language_experts,
            self.language_gate,
            routing.of_stream(layer, LANGUAGE),
        )
        hidden_states = image.scatter(hidden_states, mixed_image)
        return language.scatter(hidden_states, mixed_language), image_weights, language_weights

    def read_sources(
        self,
        hidden_states: torch.Tensor,
        auxiliary_states: torch.Tensor | None,
        image: TokenStream,
        routing: Routing,
        layer: int,
    ) -> LanguageSources:
        """Project what the language stream's experts read once, for the prompt and the answers after it.

        Args:
            hidden_states: See :meth:`forward`, as the rest.
            auxiliary_states: Likewise.
            image: The image stream.
            routing: How experts are chosen.
            layer: This mixer's ordinal among the mixer layers.
        """
        only = routing.of_stream(layer, LANGUAGE).only_expert
        found = _gather_sources(hidden_states, auxiliary_states, image.to(hidden_states.device))
        experts = enumerate(self.language_experts[: len(found)])
        auxiliary, seen = (
            source.projected_by(expert, only in (None, index))
            for source, (index, expert) in zip(found, experts, strict=True)
        )
        return auxiliary, seen

    def mix_answers(
        self,
        hidden_states: torch.Tensor,
        answers: TokenStream,
        sources: LanguageSources,
        routing: Routing,
        layer: int,
    ) -> torch.Tensor:
        """Mix answer tokens with what cannot tell them what follows: auxiliary tokens and images, not language.

        The gate weighs all three experts, and the third's share is not spent: so an answer token may read little, as a
        prompt's token does whose gate prefers language.

        Args:
            hidden_states: ``(B, L, D)`` what the decoder layer's attention is about to see (normed).
            answers: Which of them are answer.
            sources: What they read.
            routing: How experts are chosen: the language stream's weights.
            layer: This mixer's ordinal among the mixer layers.

        Returns:
            Mixed ``(B, L, D)`` states.
        """
        answers = answers.to(hidden_states.device)
        unread = Source(None, None, torch.ones_like(sources[0].is_present))
        mixed, _ = _mix_stream(
            answers.gather(hidden_states),
            (*sources, unread),
            self.language_experts,
            self.language_gate,
            routing.of_answers(layer),
        )
        return answers.scatter(hidden_states, mixed)


def _gather_sources(
    hidden_states: torch.Tensor, auxiliary_states: torch.Tensor | None, image: TokenStream
) -> LanguageSources:
    auxiliary = Source(auxiliary_states, None, torch.zeros_like(image.is_present))
    if auxiliary_states is not None:
        auxiliary = auxiliary._replace(is_present=find_auxiliary_rows(auxiliary_states))
    return auxiliary, Source(image.gather(hidden_states), image.key_mask, image.is_present)


def _mix_stream(
    tokens: torch.Tensor, sources: Sequence[Source], experts: nn.ModuleList, gate: Gate, routing: StreamRouting
) -> tuple[torch.Tensor, torch.Tensor]:
    """Y = tokens + sum over experts of weight * expert(tokens, source); weights ``(B, N, 3)`` sum to 1 per token."""
    available = torch.stack([source.is_present for source in sources], dim=-1)  # (B, 1, 3)
    weights = _weigh_experts(tokens, available, gate, routing)
    mixed = tokens
    for index, (expert, source) in enumerate(zip(experts, sources, strict=True)):
        has_tokens = not isinstance(source.tokens, torch.Tensor) or source.tokens.shape[1] > 0
        if tokens.shape[1] > 0 and source.tokens is not None and has_tokens and routing.only_expert in (None, index):
            found = expert(tokens, source.tokens, source.mask)  # (B, N, D)
            mixed = mixed + found * weights[..., index, None].to(found.dtype)
    return mixed, weights


def _weigh_experts(tokens: torch.Tensor, available: torch.Tensor, gate: Gate, routing: StreamRouting) -> torch.Tensor:
    """Weights ``(B, N, 3)`` float32 by the routing in force, zero for experts whose source is absent."""
    batch, length = tokens.shape[:2]
    if routing.only_expert is not None:
        weights = torch.zeros(1, 1, NUM_EXPERTS, device=tokens.device)
        weights[..., routing.only_expert] = 1.0
    elif routing.weights is not None:
        weights = routing.weights.to(tokens.device)
        if weights.shape[0] not in (1, batch):
            raise ValueError(
                f"Expected routing weights for a batch of {batch}, got {weights.shape[0]} rows. Pass one per sample."
            )
        if weights.shape[1] not in (1, length):
            raise ValueError(
                f"Expected routing weights for {length} tokens, got {weights.shape[1]} rows. Pass one per token."
            )
    else:
        return gate(tokens, available, routing.top_k)
    weights = weights * available
    return (weights / weights.sum(-1, keepdim=True).clamp_min(1e-9)).expand(batch, length, -1)


def _build_expert(config: MixerConfig) -> Expert:
    return Expert(
        config.hidden_size,
        config.num_heads,
        config.rank,
        use_activation=config.use_activation,
        qk_norm=config.qk_norm,
        init_scale=config.init_scale,
        output_init_scale=config.output_init_scale,
    )


class Mixers(nn.Module):
    """All mixer layers of a model, outside the decoder, so that the decoder stays as its authors saved it.

    Args:
        config: Where the mixers sit and how large they are.
    """

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        self.layer_indices, self.mixes_answers = config.layers, config.mixes_answers
        self.layers = nn.ModuleList(MixerLayer(config) for _ in config.layers)

    def forward(
        self,
        hidden_states: torch.Tensor,
        layer_idx: int,
        auxiliary_states: torch.Tensor | None,
        image: TokenStream,
        language: TokenStream,
        routing: Routing,
        sources: LanguageSources | None = None,
    ) -> tuple[torch.Tensor, LayerRouting]:
        """Run the mixer that sits at decoder layer ``layer_idx``; see :meth:`MixerLayer.forward`."""
        ordinal = self.layer_indices.index(layer_idx)
        mixed, image_weights, language_weights = self.layers[ordinal](
            hidden_states, auxiliary_states, image, language, routing, ordinal, sources
        )
        image_weights, image_mask = _report(image_weights, image)
        language_weights, language_mask = _report(language_weights, language)
        return mixed, LayerRouting(layer_idx, image_weights, language_weights, image_mask, language_mask)

    def read_sources(
        self,
        hidden_states: torch.Tensor,
        layer_idx: int,
        auxiliary_states: torch.Tensor | None,
        image: TokenStream,
        routing: Routing,
    ) -> LanguageSources:
        """Project what is read at decoder layer ``layer_idx``; see :meth:`MixerLayer.read_sources`."""
        ordinal = self.layer_indices.index(layer_idx)
        return self.layers[ordinal].read_sources(hidden_states, auxiliary_states, image, routing, ordinal)

    def mix_answers(
        self,
        hidden_states: torch.Tensor,
        layer_idx: int,
        answers: TokenStream,
        sources: LanguageSources,
        routing: Routing,
    ) -> torch.Tensor:
        """Let answers read at decoder layer ``layer_idx``; see :meth:`MixerLayer.mix_answers`."""
        ordinal = self.layer_indices.index(layer_idx)
        return self.layers[ordinal].mix_answers(hidden_states, answers, sources, routing, ordinal)


def _report(weights: torch.Tensor, stream: TokenStream) -> tuple[torch.Tensor, torch.Tensor]:
    """Build the routing report of a layer: zero weights in padding slots, explicit masks."""
    mask = stream.mask
    if mask is None:
        mask = torch.ones(weights.shape[:2], dtype=torch.bool, device=weights.device)
    return weights * mask[..., None], mask
