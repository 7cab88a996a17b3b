"""The released MoAI's way of computing, written plainly over our modules' weights.

What differs from ours: attention is an explicit ``softmax(q k^T) v`` everywhere, with the whole matrix of
scores in memory; the mixture loops over the samples of a batch in Python and runs each expert on its own; padding
is not masked. The mathematics of one unpadded sample is the same (``tests/benchmarks/test_release_form.py``).

Left out, because they say nothing about the form: the release's logits for every prompt position (here only
the asked ones), and recomputing anything per step. So the comparison leans towards the release.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from compressor import Compressor
from mixer import Expert, MixerLayer

KeysValues = list[tuple[torch.Tensor, torch.Tensor]]
IMAGE_ROLE, LANGUAGE_ROLE = 1, 2


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention with its scores spelled out.

    Args:
        query: ``(B, H, N, d)``.
        key: ``(B, H, S, d)``.
        value: ``(B, H, S, d)``.
        bias: ``(N, S)`` added to the scores, or None.

    Returns:
        ``(B, H, N, d)``.
    """
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])  # (B, H, N, S)
    if bias is not None:
        scores = scores + bias
    return scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype) @ value


def split_heads(states: torch.Tensor, num_heads: int) -> torch.Tensor:
    """``(B, N, H * d) -> (B, H, N, d)``."""
    batch, length, _ = states.shape
    return states.view(batch, length, num_heads, -1).transpose(1, 2)


def merge_heads(states: torch.Tensor) -> torch.Tensor:
    """``(B, H, N, d) -> (B, N, H * d)``."""
    return states.transpose(1, 2).flatten(2)


def compress(compressor: Compressor, auxiliary: torch.Tensor) -> torch.Tensor:
    """The ``perceiver`` compressor: ``(B, A, D) -> (B, num_latents, D)``; padding is read like words."""
    latents = compressor.latents(auxiliary.shape[0])
    for layer in compressor.stack.layers:
        attention = layer.attention
        normed = attention.norm_latents(latents)
        source = torch.cat([attention.norm_auxiliary(auxiliary), normed], dim=1)
        key, value = attention.to_key_value(source).chunk(2, dim=-1)
        heads = attention.num_heads
        attended = attend(
            split_heads(attention.to_query(normed), heads), split_heads(key, heads), split_heads(value, heads)
        )
        latents = latents + attention.to_output(merge_heads(attended))
        latents = latents + layer.feed_forward(latents)
    return compressor.norm(latents)


def listen(expert: Expert, tokens: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """One expert with its residual: ``tokens (1, N, D)``, ``source (1, S, D)`` -> ``(1, N, D)``."""
    activation, heads = expert.activation, expert.num_heads
    attended = attend(
        split_heads(activation(expert.query(tokens)), heads),
        split_heads(activation(expert.key(source)), heads),
        split_heads(activation(expert.value(source)), heads),
    )
    return tokens + activation(expert.output(merge_heads(attended)))


def mix(
    mixer: MixerLayer, hidden_states: torch.Tensor, auxiliary_states: torch.Tensor, roles: torch.Tensor
) -> torch.Tensor:
    """Mix the prompt of each sample, one sample after the other.

    Args:
        mixer: One mixer layer.
        hidden_states: ``(B, L, D)`` normed states.
        auxiliary_states: ``(B, N, D)``.
        roles: ``(B, L)`` 1 image, 2 prompt language, 0 anything else.

    Returns:
        ``(B, L, D)``.
    """
    samples = []
    for sample, auxiliary, role in zip(hidden_states, auxiliary_states, roles, strict=True):
        is_image, is_language = role == IMAGE_ROLE, role == LANGUAGE_ROLE
        image, language, auxiliary = sample[is_image][None], sample[is_language][None], auxiliary[None]
        mixed = sample.clone()
        for experts, gate, tokens, other, where in (
            (mixer.image_experts, mixer.image_gate, image, language, is_image),
            (mixer.language_experts, mixer.language_gate, language, image, is_language),
        ):
            weights = F.linear(tokens.float(), gate.weight.float(), gate.bias.float()).softmax(dim=-1).to(tokens.dtype)
            outputs = [
                listen(expert, tokens, source)
                for expert, source in zip(experts, (auxiliary, other, tokens), strict=True)
            ]
            mixed[where] = sum(weights[..., index, None] * output for index, output in enumerate(outputs))[0]
        samples.append(mixed)
    return torch.stack(samples)


class ReleaseForm(nn.Module):
    """The released form of a MoAI whose decoder is a Llama and whose compressor is the perceiver.

    Args:
        model: A ``MoAIForConditionalGeneration``; its modules are used, none is copied.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.compressor = model.model.compressor
        self.mixers = model.model.mixers
        self.language_model = model.model.language_model
        self.lm_head = model.lm_head

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        auxiliary_embeds: torch.Tensor | None = None,
        roles: torch.Tensor | None = None,
        past: KeysValues | None = None,
        num_logits: int = 0,
    ) -> tuple[torch.Tensor, KeysValues]:
        """Run a prompt, or one more token after it.

        Args:
            inputs_embeds: ``(B, L, D)`` words and image features in order.
            auxiliary_embeds: ``(B, A, D)`` auxiliary tokens; None bypasses the mixers, as for decoded tokens.
            roles: ``(B, L)`` as in :func:`mix`.
            past: Keys and values of earlier tokens, one pair per layer.
            num_logits: Logits of the last so many positions; 0 for all.

        Returns:
            Logits ``(B, num_logits or L, V)`` and the keys and values so far.
        """
        decoder = self.language_model
        auxiliary_states = None if auxiliary_embeds is None else compress(self.compressor, auxiliary_embeds)
        start = past[0][0].shape[2] if past else 0
        length = inputs_embeds.shape[1]
        positions = torch.arange(start, start + length, device=inputs_embeds.device)[None]
        tables = decoder.rotary_emb(inputs_embeds, positions)
        bias = inputs_embeds.new_full((length, start + length), torch.finfo(inputs_embeds.dtype).min)
        bias = bias.triu(start + 1)

        hidden_states, present = inputs_embeds, []
        for index, layer in enumerate(decoder.layers):
            normed = layer.input_layernorm(hidden_states)
            if auxiliary_states is not None and index in self.mixers.layer_indices:
                mixer = self.mixers.layers[self.mixers.layer_indices.index(index)]
                normed = mix(mixer, normed, auxiliary_states, roles)
            attended, pair = self._attend_causally(layer.self_attn, normed, tables, bias, past and past[index])
            present.append(pair)
            hidden_states = hidden_states + attended
            hidden_states = hidden_states + layer.mlp(layer.post_attention_layernorm(hidden_states))
        logits = self.lm_head(decoder.norm(hidden_states)[:, -num_logits:])
        return logits, present

    @staticmethod
    def _attend_causally(
        attention: nn.Module,
        states: torch.Tensor,
        tables: tuple[torch.Tensor, torch.Tensor],
        bias: torch.Tensor,
        past: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        width = attention.head_dim
        query, key, value = (
            split_heads(projection(states), projection.out_features // width)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *tables)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        groups = query.shape[1] // key.shape[1]
        attended = attend(query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), bias)
        return attention.o_proj(merge_heads(attended)), (key, value)
