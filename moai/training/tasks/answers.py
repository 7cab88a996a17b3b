"""Training on answers: samples in an order of their own, and the loss on answer tokens of any model that answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from os.path import commonprefix
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from moai.data.collator import WEIGHTS, CollatedBatches, SampleCollator, collate
from moai.import_utils import require
from moai.processing.token_roles import IGNORE_INDEX

from ..batch_order import BatchOrder
from ..loading import load_batches
from ..processes import seed_generators
from ..run_identity import hash_samples
from ..task import Batch, Task
from ..train_settings import TrainSettings
from ..trained_parts import ADAPTER, adapter_pattern, base_model, find_modules, freeze_parts, part_of, rest_towers

__all__ = ["AnswersTask", "add_adapter", "answer_loss", "count_targets", "target_window"]


def count_targets(labels: torch.Tensor, weights: torch.Tensor | None = None) -> float:
    """Tokens of ``(B, L)`` labels that carry a loss: each is predicted from the position before it.

    Args:
        labels: -100 = no loss.
        weights: ``(B,)``: so much each of a sample's counts; None = 1.
    """
    counts = (labels[:, 1:] != IGNORE_INDEX).sum(dim=1)
    return int(counts.sum()) if weights is None else float((counts * weights).sum())


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


def answer_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Cross entropy summed over answer tokens, a scalar.

    Args:
        logits: ``(B, W, vocabulary)`` of the last W positions; those before the first token, of virtual ones, are left
            out.
        labels: ``(B, L)``, -100 = no loss.
        weights: ``(B,)``: so much each token of a sample counts; None = 1.
    """
    logits = logits[:, -labels.shape[1] :]
    targets = labels[:, -logits.shape[1] :][:, 1:]
    losses = F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1),
        targets.flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="sum" if weights is None else "none",
    )
    return losses if weights is None else (losses.view_as(targets).sum(dim=1) * weights).sum()


def add_adapter(model: nn.Module, config: Any) -> nn.Module:
    """Put a new adapter on a model, the parts that are trained whole beside it.

    Args:
        model: Without one.
        config: A ``peft.PeftConfig``.
    """
    from peft import get_peft_model

    # Trained weights become float32 in `freeze_parts`, whatever PEFT would make of them.
    return get_peft_model(model, config, autocast_adapter_dtype=False)


def _linears_of_decoder(model: nn.Module, parts: Mapping[str, str]) -> str:
    """Pattern of the full names of the decoder's linears, its head left out."""
    head = model.get_output_embeddings()
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not head
        and part_of(f"{name}.weight", parts) == "decoder"
        and not name.startswith("lm_head")
    ]
    if not names:
        raise ValueError("expected linears in the decoder to adapt, found none. Name them in `target_modules`.")
    prefix = commonprefix([name.split(".") for name in names])
    return rf"(?:.*\.)?{re.escape('.'.join(prefix))}\..*\.(?:{'|'.join(sorted({n.rpartition('.')[2] for n in names}))})"


class _SeededBatches(Dataset[Any]):
    """Batches whose samples may draw random numbers: the same ones whichever process makes them."""

    def __init__(self, batches: CollatedBatches, seed: int) -> None:
        self.batches, self.seed = batches, seed

    def __getitem__(self, key: tuple[tuple[int, int], list[int]]) -> Any:
        place, indices = key
        seed_generators(self.seed, *place)
        return self.batches[indices]


class AnswersTask(Task):
    """One stage of training on questions about images; a model's own, in its `task_X.py`, says what is special.

    Attributes:
        collator_class: How the model reads samples.
        adapter_settings: Fields of an adapter that an earlier stage's must share, and the settings that they come from.

    Args:
        settings: The recipe.
        model: A model that answers, or one with a PEFT adapter.
        dataset: A map-style dataset of samples with ``lengths``, and perhaps ``image_indices``.
        collator: What makes a batch of its samples.
        validation: Samples that are not learned from.
        start: Hashes of the files that the model was loaded from; None = its frozen weights are hashed instead.
    """

    collator_class: ClassVar[type[SampleCollator]]
    adapter_settings: ClassVar[dict[str, str]] = {
        name: f"train.adapter.{name}" for name in ("r", "lora_alpha", "target_modules")
    }

    # ------------------------------------------------------------------ what is trained

    @classmethod
    def parts_of(cls, model: nn.Module) -> dict[str, str]:
        """Patterns of parameters' names by part; see :func:`.trained_parts.part_of`."""
        return adapter_pattern(model) | base_model(model).trainable_parts

    @classmethod
    def whole_parts(cls, settings: TrainSettings, parts: Mapping[str, str]) -> set[str]:
        """Parts that are trained whole.

        Args:
            settings: The recipe.
            parts: From :meth:`parts_of`.
        """
        return set(settings.train.parts or ())

    @classmethod
    def adapter_config(cls, model: nn.Module, settings: TrainSettings) -> Any:
        """The ``peft.PeftConfig`` of the adapter that is trained; None = there is none.

        Args:
            model: Without an adapter.
            settings: The recipe.

        Raises:
            ValueError: PEFT knows no such adapter, or the model cannot have it.
        """
        given = settings.train.adapter
        if given is None:
            return None
        require("peft", purpose="`train.adapter`")
        from peft import get_peft_config
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        known = sorted(str(kind.value) for kind in PEFT_TYPE_TO_CONFIG_MAPPING)
        if given["peft_type"] not in known:
            got = given["peft_type"]
            raise ValueError(f"`train.adapter.peft_type` must be one of {', '.join(known)}, got {got!r}.")
        fields = {"task_type": "CAUSAL_LM", **given}
        if not settings.train.learns_prompt:
            parts = cls.parts_of(model)
            fields.setdefault("target_modules", _linears_of_decoder(model, parts))
            fields.setdefault("modules_to_save", find_modules(model, parts, cls.whole_parts(settings, parts)) or None)
        try:
            return get_peft_config(fields)
        except TypeError as error:
            raise ValueError(f"`train.adapter`: {error}.") from error

    @classmethod
    def freeze(cls, model: nn.Module, settings: TrainSettings) -> None:
        """Give what is trained gradients, in float32.

        Args:
            model: With its adapter.
            settings: The recipe.
        """
        parts = cls.parts_of(model)
        adapter = {ADAPTER} if settings.train.has_adapter else set()
        freeze_parts(model, parts, cls.whole_parts(settings, parts) | adapter)

    @classmethod
    def adapt(cls, model: nn.Module, settings: TrainSettings) -> nn.Module:
        """Ready a loaded model for training: with a new adapter, where one is trained, and frozen otherwise."""
        config = cls.adapter_config(model, settings)
        model = model if config is None else add_adapter(model, config)
        cls.freeze(model, settings)
        return model

    @classmethod
    def make_new(cls, settings: TrainSettings) -> tuple[nn.Module, Any]:
        """The new model that the recipe describes, and its processor; where ``settings.model.is_new``."""
        raise ValueError(f"expected a checkpoint in `model.path`, got {settings.model}.")

    @classmethod
    def max_positions(cls, model: nn.Module) -> int | None:
        """Tokens that the model reads; None = no bound."""
        return getattr(base_model(model).config, "max_positions", None)

    # ------------------------------------------------------------------ the training

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
        self.model, self.parts = model, self.parts_of(model)
        # Read by FSDP's wrapping policy, which sees this module only and refuses names that it does not find in it.
        present = {type(module).__name__ for module in model.modules()}
        self._no_split_modules = sorted(present & set(getattr(base_model(model), "_no_split_modules", ()) or ()))
        self.settings, self.dataset, self.collator, self.validation = settings, dataset, collator, validation
        self.start = start
        chosen = settings.optimization
        order = (settings.seed, chosen.is_length_grouped, getattr(dataset, "image_indices", None))
        sizes = (chosen.batch_size, chosen.micro_batch_size)
        self.order = BatchOrder(dataset.lengths, *sizes, *order, chosen.samples_per_image)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.settings.optimization.count_steps(self.order.steps_per_epoch)

    def batches(self, first_step: int, last_step: int, rank: int, num_ranks: int) -> Iterator[Batch]:
        """See :meth:`.Task.batches`; ``num_workers`` processes prepare samples."""

        def keys() -> Iterator[tuple[tuple[int, int], list[int]]]:
            for step in range(first_step, last_step):
                for turn, indices in enumerate(self.order.micro_batches(step, rank, num_ranks)):
                    yield (step, turn * num_ranks + rank), indices

        batches = _SeededBatches(CollatedBatches(self.dataset, self.collator), self.settings.seed)
        pins = next(self.model.parameters()).device.type == "cuda"
        loaded = load_batches(batches, keys, self.settings.num_workers, num_ranks, pins)
        per_step = self.order.num_micro_batches // num_ranks
        for number, samples in enumerate(loaded):
            yield self.make_batch(samples, self.options(first_step + number // per_step))

    def options(self, step: int) -> dict[str, Any]:
        """Further arguments of the model in a step; what is random in them depends on seed and step alone.

        Args:
            step: Steps before it.
        """
        return {}

    def validation_options(self, place: int) -> dict[str, Any]:
        """The same for a validation batch: each has its own, the same at every measurement."""
        return {}

    def make_batch(self, samples: Mapping[str, torch.Tensor], options: Mapping[str, Any]) -> Batch:
        """A micro-batch of what the collator returned.

        Args:
            samples: Inputs of the model and ``labels``.
            options: From :meth:`options`.
        """
        inputs = {"samples": dict(samples), "options": dict(options), "window": target_window(samples["labels"])}
        num_targets = self.count_targets(samples["labels"], samples.get(WEIGHTS))
        return Batch(inputs, num_targets, float(samples["attention_mask"].sum()))

    def count_targets(self, labels: torch.Tensor, weights: torch.Tensor | None = None) -> float:
        """What the loss counts, see :attr:`.Batch.num_targets`: answer tokens, see :func:`count_targets`."""
        return count_targets(labels, weights)

    def forward(self, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See :meth:`.Task.forward`; the loss counts answer tokens."""
        samples = dict(inputs["samples"])
        labels, weights = samples.pop("labels"), samples.pop(WEIGHTS, None)
        outputs = self.model(**samples, **inputs["options"], logits_to_keep=inputs["window"], use_cache=False)
        return answer_loss(outputs.logits, labels, weights), {}

    def part_of(self, name: str) -> str:
        """The part that a parameter lies in; one of a learned prompt lies in none but the adapter."""
        inside = {part: pattern for part, pattern in self.parts.items() if part != ADAPTER}
        return ADAPTER if name.startswith("prompt_encoder.") else part_of(name, inside)

    def set_training_mode(self) -> None:
        """All but a frozen vision tower."""
        self.train()
        rest_towers(self.model, self.parts)

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
        """See :meth:`.Task.validation_batch`."""
        size = self.settings.optimization.micro_batch_size
        chosen = range(place * size, min((place + 1) * size, len(self.validation)))
        collator = getattr(self.validation, "collator", self.collator)
        samples = collate(collator, [self.validation[index] for index in chosen])
        return self.make_batch(samples, self.validation_options(place))
