"""MoAI's training as a task: forward pass, loss on answer tokens, shares of the experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from mixer import NUM_EXPERTS
from moai.data.collator import CollatedBatches, iterate_batches
from moai.processing.token_roles import IGNORE_INDEX

from .batch_order import BatchOrder, MicroBatchSampler
from .metrics_logging import EXPERT_NAMES, STREAMS
from .processes import ignore_interrupts
from .run_identity import hash_samples
from .task import Batch, Task
from .train_settings import TrainSettings
from .trained_parts import rate_part_of, set_training_mode

__all__ = [
    "NUM_ROUTING_SUMS",
    "MoAITask",
    "TrainingStep",
    "count_targets",
    "draw_routing",
    "mean_routing",
    "routing_sums",
    "target_window",
]

#: Per mixer layer and stream: weight of each of three experts, entropy, tokens; all summed over tokens.
NUM_ROUTING_SUMS = 5


def count_targets(labels: torch.Tensor) -> int:
    """Tokens of ``(B, L)`` labels that carry a loss: each is predicted from the position before it."""
    return int((labels[:, 1:] != IGNORE_INDEX).sum())


def target_window(labels: torch.Tensor) -> int:
    """Number of last positions that need logits: from the one before the first answer token to the end.

    Samples are padded on the left, so answers stand together at the end; logits of a whole prompt, images included,
    would take most of the memory (vocabulary x 1,300 positions in MoAI-7B) and teach nothing.

    Args:
        labels: ``(B, L)``, -100 = no loss.
    """
    columns = (labels != IGNORE_INDEX).any(dim=0).nonzero()
    length = labels.shape[1]
    return length if len(columns) == 0 else min(length, length - int(columns[0]) + 1)


def routing_sums(routing: tuple[Any, ...] | None, num_layers: int, device: torch.device) -> torch.Tensor:
    """Sums of the mixers' gate weights over tokens.

    Args:
        routing: One :class:`mixer.LayerRouting` per mixer layer; None or empty where nothing was mixed.
        num_layers: Number M of mixer layers.
        device: Where the result lies.

    Returns:
        ``(M, 2, 5)`` float32 without gradient; stream order image, language; see :data:`NUM_ROUTING_SUMS`.
    """
    rows = []
    for layer in routing or ():
        for weights, mask in ((layer.image, layer.image_mask), (layer.language, layer.language_mask)):
            weights = weights.detach().float()
            entropy = -(weights * weights.clamp_min(1e-12).log()).sum()
            rows.append(torch.stack([*weights.sum(dim=(0, 1)), entropy, mask.sum().float()]).to(device))
    if not rows:
        return torch.zeros(num_layers, 2, NUM_ROUTING_SUMS, device=device)
    return torch.stack(rows).view(num_layers, 2, NUM_ROUTING_SUMS)


def mean_routing(sums: torch.Tensor) -> dict[str, Any]:
    """Share of each expert and entropy (nats) of the weights, per stream, over layers; and shares by layer.

    Args:
        sums: ``(M, 2, 5)``, see :func:`routing_sums`; a stream without tokens is left out.
    """
    result: dict[str, Any] = {}
    for stream, name in enumerate(STREAMS):
        layers = sums[:, stream].tolist()
        count = sum(row[4] for row in layers)
        if not count:
            continue
        shares = [sum(row[expert] for row in layers) / count for expert in range(NUM_EXPERTS)]
        result[name] = dict(zip(EXPERT_NAMES[name], shares, strict=True))
        result[name]["entropy"] = sum(row[3] for row in layers) / count
        result[name]["layers"] = [[row[k] / row[4] if row[4] else 0.0 for k in range(NUM_EXPERTS)] for row in layers]
    return result


def draw_routing(mode: str, top_k: int, seed: tuple[int, ...], num_layers: int) -> dict[str, Any] | torch.Tensor:
    """The ``routing`` of one forward pass, as :func:`mixer.resolve_routing` takes it.

    Args:
        mode: ``gated``, ``uniform``, ``random_expert``, or ``random_weights``: weights from a flat Dirichlet
            distribution.
        top_k: Experts mixed per token where gates decide.
        seed: Numbers that decide what is random.
        num_layers: Number M of mixer layers.

    Returns:
        A mapping; of random weights the weights ``(M, 2, 3)``, float32.
    """
    number = int(np.random.SeedSequence(seed).generate_state(1)[0])
    if mode == "random_weights":
        return torch.from_numpy(np.random.default_rng(number).dirichlet(np.ones(3), (num_layers, 2))).float()
    return {"mode": mode, "top_k": top_k} | ({"seed": number} if mode == "random_expert" else {})


class TrainingStep(nn.Module):
    """The model with its loss; its outputs are the loss and numbers without gradient.

    Distributed wrappers look at a forward pass's outputs to learn which parameters a step used. The model's own
    outputs hold auxiliary states that no expert may have read in this step; the loss alone tells the truth.

    Args:
        model: A MoAI, or one with a PEFT adapter.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.num_mixers = len(inner.model.mixers.layer_indices)
        # Read by FSDP's wrapping policy, which sees this module only and refuses names that it does not find in it.
        present = {type(module).__name__ for module in model.modules()}
        self._no_split_modules = sorted(present & set(getattr(inner, "_no_split_modules", ()) or ()))

    def forward(
        self, batch: Mapping[str, torch.Tensor], routing: Mapping[str, Any] | torch.Tensor, window: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the loss.

        Args:
            batch: What the collator returned; ``labels`` ``(B, L)`` with -100 for all but answer tokens. With
                ``picture_index`` and ``auxiliary_index`` several samples share one pass of vision tower and compressor.
            routing: Who chooses experts, see :func:`mixer.resolve_routing`.
            window: From :func:`target_window`.

        Returns:
            Cross entropy summed over answer tokens, a scalar; and :func:`routing_sums`.
        """
        inputs = self._look_once({name: value for name, value in batch.items() if name != "labels"})
        outputs = self.model(
            **inputs, routing=routing, output_routing=True, logits_to_keep=window, use_cache=False, return_dict=True
        )
        targets = batch["labels"][:, -window:][:, 1:]
        logits = outputs.logits[:, :-1].float()
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
        return loss, routing_sums(outputs.routing, self.num_mixers, loss.device)

    def _look_once(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Encode images and verbalizations once where several samples share them, and repeat the features."""
        core = (self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model).model
        if (images := inputs.pop("picture_index", None)) is not None:
            features = core.get_image_features(inputs.pop("pixel_values"), return_dict=True).pooler_output
            inputs["image_features"] = features[images]
        if (rows := inputs.pop("auxiliary_index", None)) is not None:
            looks = {name: inputs.pop(name) for name in tuple(inputs) if name.startswith("auxiliary_")}
            inputs["auxiliary_states"] = core.get_auxiliary_states(**looks)[rows]
        return inputs


def _unchanged(batch: Any) -> Any:
    """What a loader makes of a batch that is one already."""
    return batch


class MoAITask(Task):
    """One stage of MoAI's training on questions about images (paper, section 3.3).

    Args:
        settings: The recipe.
        model: A MoAI, or one with a PEFT adapter.
        dataset: A map-style dataset of samples with ``lengths``, and perhaps ``pictures``.
        collator: What makes a batch of its samples.
        validation: Samples that are not learned from.
        start: Hashes of the files that the model was loaded from; None = its frozen weights are hashed instead.
    """

    def __init__(
        self,
        settings: TrainSettings,
        model: nn.Module,
        dataset: Any,
        collator: Callable[[list[Any]], Mapping[str, torch.Tensor]],
        validation: Any = None,
        start: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.training_step = TrainingStep(model)
        self._no_split_modules = self.training_step._no_split_modules
        self.settings, self.dataset, self.collator, self.validation = settings, dataset, collator, validation
        self.start = start
        chosen = settings.optimization
        order = (settings.seed, chosen.is_length_grouped, getattr(dataset, "pictures", None))
        sizes = (chosen.batch_size, chosen.micro_batch_size)
        self.order = BatchOrder(dataset.lengths, *sizes, *order, chosen.samples_per_picture)

    @property
    def model(self) -> nn.Module:
        """The trained model."""
        return self.training_step.model

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        chosen = self.settings.optimization
        return chosen.num_steps or max(1, round((chosen.num_epochs or 0) * self.order.steps_per_epoch))

    def batches(self, first_step: int, last_step: int, rank: int, num_ranks: int) -> Iterator[Batch]:
        """See :meth:`.task.Task.batches`; ``num_workers`` processes prepare samples."""
        loader = DataLoader(
            CollatedBatches(self.dataset, self.collator),
            batch_size=None,
            sampler=MicroBatchSampler(self.order, first_step, last_step, rank, num_ranks),
            collate_fn=_unchanged,
            num_workers=self.settings.num_workers,
            pin_memory=next(self.model.parameters()).device.type == "cuda",
            worker_init_fn=ignore_interrupts,
            generator=torch.Generator(),  # the global one would advance by one draw
        )
        per_step = self.order.num_micro_batches // num_ranks
        for number, samples in enumerate(iterate_batches(loader)):
            yield self._batch(samples, self._routing(first_step + number // per_step))

    def _batch(self, samples: Mapping[str, torch.Tensor], routing: Mapping[str, Any] | torch.Tensor) -> Batch:
        labels = samples["labels"]
        inputs = {"samples": dict(samples), "routing": routing, "window": target_window(labels)}
        return Batch(inputs, count_targets(labels), float(samples["attention_mask"].sum()))

    def _routing(self, step: int) -> dict[str, Any] | torch.Tensor:
        """Routing of a step; what is random in it depends on seed and step alone, so that all ranks draw alike."""
        settings, num_mixers = self.settings, self.training_step.num_mixers
        return draw_routing(settings.routing_mode, settings.top_k, (settings.seed, step, 1), num_mixers)

    def step(self, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See :class:`TrainingStep`; the counters are :func:`routing_sums`."""
        loss, routing = self.training_step(inputs["samples"], inputs["routing"], inputs["window"])
        return loss, {"routing": routing}

    def part_of(self, name: str) -> str:
        """See :func:`.trained_parts.rate_part_of`."""
        return rate_part_of(name)

    def set_training_mode(self) -> None:
        """See :func:`.trained_parts.set_training_mode`."""
        set_training_mode(self.model)

    def report(self, counters: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Shares of the experts; see :func:`mean_routing`."""
        return {"routing": mean_routing(counters["routing"])}

    def identity(self) -> dict[str, Any]:
        """Contents of the start, of the samples and of those for validation."""
        named = {"data": self.dataset, "validation": self.validation}
        found = {name: self._identify(dataset) for name, dataset in named.items() if dataset is not None}
        return (super().identity() if self.start is None else {"start": dict(self.start)}) | found

    @staticmethod
    def _identify(dataset: Any) -> dict[str, Any]:
        # Last: tokens change with the rows, and with settings that were compared before.
        lengths = np.asarray(getattr(dataset, "lengths", ()), dtype=np.int64)
        return {**hash_samples(dataset), "num_samples": len(dataset), "num_tokens": int(lengths.sum())}

    @property
    def num_validation_batches(self) -> int:
        """Micro-batches of the validation samples."""
        size = self.settings.optimization.micro_batch_size
        return 0 if self.validation is None else -(-len(self.validation) // size)

    def validation_batch(self, place: int) -> Batch:
        """Samples with the stage's own routing."""
        settings, size = self.settings, self.settings.optimization.micro_batch_size
        chosen = range(place * size, min((place + 1) * size, len(self.validation)))
        # One drawn expert would be one opinion: every batch has its own, the same at every measurement.
        routing: Any = {"mode": settings.routing_mode, "top_k": settings.top_k, "seed": settings.seed + place}
        if settings.routing_mode == "random_weights":
            routing = draw_routing("random_weights", 3, (settings.seed, place), self.training_step.num_mixers)
        return self._batch(self.collator([self.validation[index] for index in chosen]), routing)
