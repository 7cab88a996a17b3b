"""Re-routing at test time, after R2-T2 (arXiv 2502.20395): questions whose answers are known say which routing to take.

A reference is such a question with its embedding and the loss of its answer, by the gates and by each routing of
:func:`list_routings`. For a new question the nearest references estimate these losses (:meth:`References.pick`), their
best routings are averaged (:meth:`References.average`), or their loss is descended (:func:`descend`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mixer import NUM_EXPERTS, Routing

__all__ = [
    "References",
    "Scored",
    "descend",
    "embed_prompts",
    "fingerprint_mixers",
    "fit_kernel",
    "list_routings",
    "score_answers",
]

#: Kernels to choose from: numbers of neighbours, and widths in distances of the last of them; in the widest all count
#: alike.
NUM_NEIGHBOURS, BANDWIDTHS = (4, 16, 64, 256), (0.5, 1.0, 100.0)


def list_routings(num_layers: int) -> torch.Tensor:
    """Fixed routings to choose from: each expert alone or all alike, for the image's stream and for the language's.

    Returns:
        ``(16, num_layers, 2, 3)`` float32.
    """
    streams = [*torch.eye(NUM_EXPERTS), torch.full((NUM_EXPERTS,), 1 / NUM_EXPERTS)]
    pairs = torch.stack([torch.stack([image, language]) for image in streams for language in streams])
    return pairs[:, None].repeat(1, num_layers, 1, 1)


@dataclass(frozen=True, eq=False)
class Scored:
    """One pass over prompts and their answers.

    Attributes:
        losses: ``(B,)`` float32 mean negative log-likelihood of an answer's tokens.
        embeddings: ``(B, D)`` float32 what stands at the end of the prompt.
        encoded: What needs no further look at image and verbalization: arguments of the model.
        routing: Per mixer layer, as the model tells it.
    """

    losses: torch.Tensor
    embeddings: torch.Tensor
    encoded: Mapping[str, torch.Tensor]
    routing: Any

    @property
    def gates(self) -> torch.Tensor:
        """``(B, M, 2, 3)`` float32 what the gates say on average, by layer and stream."""
        parts = [[(layer.image, layer.image_mask), (layer.language, layer.language_mask)] for layer in self.routing]
        means = [
            torch.stack(
                [(w * m[..., None]).sum(dim=1) / m.sum(dim=1, keepdim=True).clamp(min=1) for w, m in layer], dim=1
            )
            for layer in parts
        ]
        return torch.stack(means, dim=1).float().cpu()


def score_answers(
    model: Any,
    inputs: Mapping[str, Any],
    answers: Sequence[Sequence[int]],
    routing: Any = None,
    **encoded: torch.Tensor,
) -> Scored:
    """How likely answers are under a routing; keeps the gradient.

    Args:
        model: A :class:`.MoAIForConditionalGeneration`.
        inputs: Of the prompts, padded on the left.
        answers: Token ids, one answer per prompt, their ends included.
        routing: See :func:`mixer.resolve_routing`.
        **encoded: From an earlier pass over the same prompts.
    """
    prompt = inputs["input_ids"]
    longest = max(map(len, answers))
    ids, mask = (prompt.new_zeros(len(prompt), longest) for _ in range(2))
    for row, answer in enumerate(answers):
        ids[row, : len(answer)] = torch.tensor(answer, device=prompt.device)
        mask[row, : len(answer)] = 1
    following = {"input_ids": ids, "attention_mask": mask}
    rows = {
        name: torch.cat([value, following.get(name, torch.zeros_like(ids)).to(value.dtype)], dim=1)
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor) and value.shape == prompt.shape
    }
    outputs = model.model(
        **{**inputs, **rows, **encoded}, routing=routing, output_routing=routing is None, use_cache=False
    )
    states = outputs.last_hidden_state[:, prompt.shape[1] - 1 :]  # (B, 1 + longest, D)
    logits = model.lm_head(states[:, :-1]).float().log_softmax(dim=-1)
    found = logits.gather(-1, ids[..., None])[..., 0] * mask
    known = {"image_features": outputs.image_hidden_states, "auxiliary_states": outputs.auxiliary_hidden_states}
    return Scored(
        -found.sum(dim=1) / mask.sum(dim=1),
        states[:, 0].detach().float().cpu(),
        {name: value.detach() for name, value in known.items() if value is not None},
        outputs.routing,
    )


@torch.no_grad()
def embed_prompts(model: Any, inputs: Mapping[str, Any]) -> Scored:
    """The embeddings ``(B, D)`` of prompts, and how they are routed by the gates."""
    end = int(inputs["input_ids"][0, -1])  # any token: nothing in front of it sees it
    return score_answers(model, inputs, [[end]] * len(inputs["input_ids"]))


def fingerprint_mixers(model: Any) -> str:
    """A digest of what routes: references are one model's."""
    digest = hashlib.sha256()
    for name, value in sorted(model.model.mixers.state_dict().items()):
        digest.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class References:
    """Questions whose answers are known.

    Attributes:
        embeddings: ``(N, D)`` float32.
        losses: ``(N, 1 + R)`` float32, by the gates and by each of :func:`list_routings`.
        num_neighbours: How many count for a new question.
        bandwidth: Of the Gaussian kernel, in distances of the last neighbour.
        content: What else is known: ``fingerprint``, ``num_layers``, ``questions`` (``id`` and ``kind``), ``test``.
    """

    embeddings: torch.Tensor
    losses: torch.Tensor
    num_neighbours: int
    bandwidth: float
    content: Mapping[str, Any]

    @classmethod
    def load(cls, path: str | Path) -> References:
        """Read a file of ``moai reroute``.

        Raises:
            ValueError: It is none.
        """
        try:
            with safe_open(path, "pt") as file:
                content = json.loads((file.metadata() or {})["references"])
                tensors = {name: file.get_tensor(name).clone() for name in ("embeddings", "losses")}
            return cls(
                **tensors, **{name: content.pop(name) for name in ("num_neighbours", "bandwidth")}, content=content
            )
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise ValueError(
                f"expected a references.safetensors that `moai reroute` wrote, got {str(path)!r} ({error}). Write one."
            ) from error

    @property
    def routings(self) -> torch.Tensor:
        """See :func:`list_routings`."""
        return list_routings(self.content["num_layers"])

    def check(self, model: Any) -> None:
        """Check that they are this model's.

        Raises:
            ValueError: They are another's.
        """
        if (got := fingerprint_mixers(model)) != self.content["fingerprint"]:
            raise ValueError(
                f"expected references of this model (mixers {got}), got those of {self.content['fingerprint']}. "
                "Write its own: moai reroute MODEL TEST."
            )

    def find_neighbours(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Places ``(Q, k)`` of the nearest references of embeddings ``(Q, D)``, and their shares, which sum to 1."""
        return _find(embeddings, self.embeddings, self.num_neighbours, self.bandwidth)

    def pick(self, embeddings: torch.Tensor, losses: torch.Tensor | None = None) -> torch.Tensor:
        """The likeliest routings ``(Q,)`` for embeddings ``(Q, D)``: 0 = the gates, else one of ``routings`` and 1.

        Args:
            embeddings: Of questions.
            losses: Other losses of the references, in other places, say.
        """
        return _estimate(*self.find_neighbours(embeddings), self.losses if losses is None else losses).argmin(dim=1)

    def average(
        self, embeddings: torch.Tensor, gates: torch.Tensor, losses: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Average the neighbours' best routings, as R2-T2's kernel regression does.

        Args:
            embeddings: ``(Q, D)`` of questions.
            gates: ``(Q, M, 2, 3)`` what their gates say on average: stands for the gates where these are a neighbour's
                best.
            losses: As in :meth:`pick`.

        Returns:
            ``(Q, M, 2, 3)`` weights.
        """
        best = (self.losses if losses is None else losses).argmin(dim=1)  # (N,)
        chosen = torch.nn.functional.one_hot(best, self.losses.shape[1]).float()
        shares = _estimate(*self.find_neighbours(embeddings), chosen)  # (Q, 1 + R)
        fixed = torch.einsum("qr,rmse->qmse", shares[:, 1:], self.routings)
        return shares[:, 0, None, None, None] * gates + fixed


def _find(
    embeddings: torch.Tensor,
    references: torch.Tensor,
    num_neighbours: int,
    bandwidth: float,
    is_barred: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :meth:`References.find_neighbours`; barred references ``(Q, N)`` do not count."""
    center = references.mean(dim=0)
    rows, columns = (torch.nn.functional.normalize(part - center, dim=1) for part in (embeddings, references))
    distances = (2 - 2 * rows @ columns.T).clamp(min=0)
    if is_barred is not None:
        distances = distances.masked_fill(is_barred, math.inf)
    near = distances.topk(min(num_neighbours, len(references)), largest=False)
    squared = near.values
    last = squared.masked_fill(squared.isinf(), 0).amax(dim=1, keepdim=True).clamp(min=1e-12)
    kernel = (-squared / (2 * bandwidth**2 * last)).exp()
    return near.indices, kernel / kernel.sum(dim=1, keepdim=True)


def _estimate(places: torch.Tensor, shares: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Averages ``(Q, C)`` of values ``(N, C)`` over neighbours."""
    return (shares[..., None] * values[places]).sum(dim=1)


def fit_kernel(
    embeddings: torch.Tensor, losses: torch.Tensor, images: Sequence[str]
) -> tuple[int, float, dict[str, float]]:
    """Choose the kernel whose picks lose least, each reference picked for by those about other images.

    Args:
        embeddings: ``(N, D)``.
        losses: ``(N, 1 + R)``.
        images: Equal for references about one image.

    Returns:
        Number of neighbours, bandwidth, and the mean loss of each kernel by name, ``gated`` and ``static`` beside them.

    Raises:
        ValueError: All references are about one image.
    """
    numbers = {image: number for number, image in enumerate(dict.fromkeys(images))}
    if len(numbers) < 2:
        raise ValueError(f"expected references about two images or more, got {len(numbers)}. Take a longer test.")
    groups = torch.tensor([numbers[image] for image in images])
    told, best = {"gated": losses[:, 0].mean().item(), "static": losses.mean(dim=0).min().item()}, None
    for size in [size for size in NUM_NEIGHBOURS if size < len(losses)] or [len(losses)]:
        for bandwidth in BANDWIDTHS:
            picked = []
            for rows in torch.arange(len(losses)).split(256):
                is_barred = groups[rows, None] == groups[None]
                found = _find(embeddings[rows], embeddings, size, bandwidth, is_barred)
                picked.append(_estimate(*found, losses).argmin(dim=1))
            loss = losses.gather(1, torch.cat(picked)[:, None]).mean().item()
            told[f"{size} neighbours, bandwidth {bandwidth}"] = loss
            if best is None or loss < best[0]:
                best = loss, size, bandwidth
    return best[1], best[2], told


def descend(
    model: Any,
    inputs: Mapping[str, Any],
    answers: Sequence[Sequence[int]],
    shares: torch.Tensor,
    start: torch.Tensor,
    num_steps: int,
    rate: float = 0.3,
) -> torch.Tensor:
    """Move routing weights to where the answers of neighbours are likelier.

    Args:
        model: A :class:`.MoAIForConditionalGeneration`; its parameters get no gradient.
        inputs: The neighbours' prompts.
        answers: Their answers.
        shares: ``(k,)`` how much each counts.
        start: ``(M, 2, 3)`` weights to begin with.
        num_steps: Of Adam, on the weights' logarithms.
        rate: Of its steps.

    Returns:
        ``(M, 2, 3)`` float32 weights.
    """
    with torch.no_grad():
        encoded = score_answers(model, inputs, answers, "uniform").encoded
    logits = start.clamp(min=1e-3).log().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=rate)
    for _ in range(num_steps):
        weights = logits.softmax(dim=-1).expand(len(answers), *logits.shape)
        losses = score_answers(model, inputs, answers, Routing("given", weights=weights), **encoded).losses
        (logits.grad,) = torch.autograd.grad((shares.to(losses.device) * losses).sum(), logits)
        optimizer.step()
    return logits.detach().softmax(dim=-1)
