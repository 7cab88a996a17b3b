"""Initialisation of new experts from the features that they will attend to.

An expert's queries and keys are low-rank maps of hidden states. Left to chance they attend to everything a little, and
thousands of scenes go by until a question's word looks at its own name among the latents. But what they should attend
to first is known, and a map that does so follows from a few batches by least squares:

- language <- auxiliary: a word of the question looks at latents that stand for the same word;
- image <- auxiliary: the j-th patch looks at the j-th stretch of the latents, so that patches line up as text.

Everything stays trainable; the paper's method is untouched. Compare data-dependent initialisation, arXiv 1511.06856.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from mixer.experts import Expert
from moai.models.moai.modeling_moai import MoAIForConditionalGeneration

from .phrase_recall import SLOT_GROUPS

__all__ = ["start_with_reading_order", "start_with_word_matching"]

AUXILIARY = 0  # both streams' first expert
_RIDGE = 0.01
#: How much of the other experts' voice remains: a mixer in a pretrained decoder starts close to the identity.
_QUIET = 0.1
#: How much each group of phrase targets counts when the experts' 64 dimensions are shared out.
_CARRIED = {"region": 3.0, "name": 1.0, "coordinates": 0.0, "relation_ends": 1.0, "letters": 0.6}


@contextmanager
def _recorded(experts: list[Expert]) -> Iterator[list[list[tuple[torch.Tensor, torch.Tensor]]]]:
    """Collect each expert's (tokens, source), float32, while the block runs."""
    records: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in experts]
    hooks = [
        expert.register_forward_pre_hook(
            lambda _, inputs, kept=kept: kept.append((inputs[0].float(), inputs[1].float()))
        )
        for expert, kept in zip(experts, records, strict=True)
    ]
    try:
        yield records
    finally:
        for hook in hooks:
            hook.remove()


def _linear_map(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Ridge regression: the ``(targets' width, inputs' width)`` map from rows of ``inputs`` to rows of ``targets``."""
    gram = inputs.T @ inputs + _RIDGE * len(inputs) * torch.eye(inputs.shape[1])
    return torch.linalg.solve(gram, inputs.T @ targets).T


def _principal_directions(rows: torch.Tensor, count: int) -> torch.Tensor:
    """The first right singular vectors, ``(count, D)``, orthonormal."""
    return torch.linalg.svd(rows, full_matrices=False).Vh[:count]


def _carried_directions(model: MoAIForConditionalGeneration, rank: int) -> torch.Tensor:
    """The directions of a latent that the recall heads read, ``(rank, D)``: what is worth carrying."""
    embedding, recall = model.get_input_embeddings().weight, model.recall
    heads = recall.pieces.weight.unflatten(0, (-1, embedding.shape[1]))  # (13, D, D)
    rows = [_CARRIED["region"] * recall.region.weight, 0.5 * embedding]
    for name, group in list(SLOT_GROUPS.items())[1:]:
        rows += [_CARRIED[name] * head for head in heads[group.start - 1 : group.stop - 1]]
    return _principal_directions(torch.cat(rows), rank)


@torch.no_grad()
def start_with_word_matching(model: MoAIForConditionalGeneration, run: Callable[[], list[torch.Tensor]]) -> list[float]:
    """Initialise experts so that words attend to the latents of the same word.

    Args:
        model: With a trained compressor and ``recall`` (:class:`.phrase_recall.PhraseRecall`).
        run: Runs the model on some batches without gradient; returns, row by row in the order of the language
            streams it made, their input ids.

    Returns:
        Per mixer layer, how well a hidden state tells its own word: the share of variance explained.
    """
    layers = model.model.mixers.layers
    for layer in layers:
        for expert in (*layer.language_experts, *layer.image_experts):
            expert.output.up.mul_(_QUIET)
    experts = [layer.language_experts[AUXILIARY] for layer in layers]
    with _recorded(experts) as records:
        rows = run()
    words = torch.nn.functional.rms_norm(model.get_input_embeddings().weight.float(), (experts[0].key.down.shape[1],))
    rank, width = experts[0].key.down.shape
    basis = _principal_directions(words - words.mean(dim=0), rank)
    carried = _carried_directions(model, rank)
    explained = []
    for expert, kept in zip(experts, records, strict=True):
        streams = [stream for tokens, _ in kept for stream in tokens]
        hidden = torch.cat([stream[: len(ids)] for stream, ids in zip(streams, rows, strict=True)])
        targets = words[torch.cat(rows)]
        own_word = _linear_map(hidden, targets)  # (D, D)
        rest = (hidden @ own_word.T - targets).square().sum() / (targets - targets.mean(dim=0)).square().sum()
        explained.append(float(1 - rest))
        heads = expert.num_heads
        turned = [torch.nn.init.orthogonal_(torch.empty(width // heads, rank)) for _ in range(heads)]
        expert.query.down.copy_(basis @ own_word)
        expert.key.down.copy_(basis)
        for projection in (expert.query, expert.key):
            projection.up.copy_(torch.cat(turned))
        _carry(expert, carried)
    return explained


def _carry(expert: Expert, directions: torch.Tensor) -> None:
    """Value and output: one orthogonal projection."""
    for projection in (expert.value, expert.output):
        projection.down.copy_(directions)
        projection.up.copy_(directions.T)


def _place_code(places: torch.Tensor, num_waves: int) -> torch.Tensor:
    """Sines and cosines of places in 0..1, ``(n, 2 * num_waves)``; their product peaks where two places agree."""
    frequencies = 0.5 * torch.arange(1, num_waves + 1)
    angles = 2 * math.pi * 0.95 * places[:, None] * frequencies  # 0.95: the two ends must not meet
    strength = torch.exp(-0.5 * (frequencies / 8).square())
    return torch.cat([angles.cos() * strength, angles.sin() * strength], dim=1)


@torch.no_grad()
def start_with_reading_order(
    model: MoAIForConditionalGeneration, run: Callable[[], object], peak: float = 7.0
) -> list[tuple[float, float]]:
    """Initialise experts so that the j-th patch attends to the j-th stretch of the latents.

    Args:
        model: See :func:`start_with_word_matching`.
        run: Runs the model on some batches with images, without gradient.
        peak: Attention logit where the places agree.

    Returns:
        Per mixer layer, how well patches and latents tell their place: shares of variance explained.
    """
    experts = [layer.image_experts[AUXILIARY] for layer in model.model.mixers.layers]
    with _recorded(experts) as records:
        run()
    rank, width = experts[0].key.down.shape
    carried = _carried_directions(model, rank)
    explained = []
    for expert, kept in zip(experts, records, strict=True):
        head_width = width // expert.num_heads
        num_waves = min(rank, head_width) // 2
        scale = math.sqrt(
            peak * math.sqrt(head_width) / float(_place_code(torch.tensor([0.5]), num_waves).square().sum())
        )
        shares = []
        for projection, states in (
            (expert.query, torch.cat([tokens for tokens, _ in kept])),
            (expert.key, torch.cat([source for _, source in kept])),
        ):
            count = states.shape[1]
            code = _place_code((torch.arange(count) + 0.5) / count, num_waves).repeat(states.shape[0], 1)
            found = _linear_map(states.flatten(0, 1), code)
            rest = (states.flatten(0, 1) @ found.T - code).square().mean() / (code - code.mean(dim=0)).square().mean()
            shares.append(float(1 - rest))
            projection.down.normal_(std=0.05)
            projection.down[: 2 * num_waves] = scale * found
            projection.up.zero_()
            for head in range(expert.num_heads):
                projection.up[head * head_width :][: 2 * num_waves, : 2 * num_waves] = torch.eye(2 * num_waves)
        explained.append((shares[0], shares[1]))
        _carry(expert, carried)
    return explained
