"""Memory and time of training: one step of the recipe's own task runs without numbers and is counted meanwhile.

Two things are assumed and can be set: the share of a GPU's peak that is reached, and the bandwidth between GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from moai.data.samples import Sample
from moai.models.registry import load_named
from moai.training.tasks.answers import AnswersTask
from moai.training.train_settings import TrainSettings
from moai.training.trained_parts import base_model, count_parts

from .counting import counting
from .inference import EFFICIENCY
from .planned_model import PlannedModel, SampleShape, meta_floats, silent_libraries
from .weight_sizes import NF4_BYTES, build_empty

__all__ = ["Cluster", "StepCount", "StepPlan", "count_step", "plan_step", "prepare_step"]

#: What is left free for fragments, the context and communication.
_USABLE = 0.9
_LARGEST_MICRO_BATCH = 64


@dataclass(frozen=True)
class StepCount:
    """What was counted of a step of one sample.

    Attributes:
        num_parameters: Of the model, adapters included.
        num_trained: With gradients.
        num_linear: Frozen numbers in linears that the model's quantization shrinks.
        num_copied: Parts that PEFT keeps a second, untouched copy of.
        num_layers: Of the decoder.
        parts: Part -> parameters, trained parameters.
        flops: Operations of forward and backward pass, those of recomputed activations included.
        fixed_bytes: Memory that the passes take whatever the batch, gradients included.
        sample_bytes: Memory that each sample adds.
        width: Bytes of a frozen weight and of an activation.
    """

    num_parameters: int
    num_trained: int
    num_linear: int
    num_copied: int
    num_layers: int
    parts: Mapping[str, tuple[int, int]]
    flops: int
    fixed_bytes: int
    sample_bytes: int
    width: int

    @property
    def trained_bytes(self) -> int:
        """Trained weights and AdamW's two moments in float32; in 16 bits what gradients and copies take beside."""
        return self.num_trained * (12 if self.width == 4 else 16)


class _Samples(list):
    """Samples of one length, as a task takes a data set."""

    @property
    def lengths(self) -> np.ndarray:
        return np.ones(len(self), dtype=np.int64)


def count_step(model: PlannedModel, settings: TrainSettings, shape: SampleShape) -> StepCount:
    """Count a step of a recipe: forward and backward pass.

    Args:
        model: What is trained; the recipe's own ``model.path`` is not read.
        settings: The recipe.
        shape: How long samples are.

    Raises:
        ValueError: Nobody trains such a model, or the recipe is another model's.
    """
    if model.spec.task is None or type(settings) is not load_named(model.spec.settings):
        raise ValueError(
            f"expected a recipe for {model.name}, a {model.config.model_type}, got one for another model. Name its own "
            "recipe (configs/), or leave the model out: the recipe names one."
        )
    task_class: type[AnswersTask] = load_named(model.spec.task)
    dtype = torch.bfloat16 if settings.optimization.precision == "bf16" else torch.float32
    whole = build_empty(model.config)
    skipped = model.answering.whole_modules if model.answering.can_quantize else ("",)
    with torch.device("meta"):
        if settings.model.gradient_checkpointing:
            whole.activation_checkpointing_enable()
        trained: nn.Module = task_class.adapt(whole, settings)
    for parameter in trained.parameters():
        parameter.data = parameter.data.to(dtype)
    parts = {
        row.part: (row.num_parameters, row.num_trained) for row in count_parts(trained, task_class.parts_of(trained))
    }
    most = max(2, settings.optimization.micro_batch_size)
    flops, least_bytes = _count_pass(model, trained, settings, shape, 1, dtype)
    most_bytes = _count_pass(model, trained, settings, shape, most, dtype)[1]
    sample_bytes = (most_bytes - least_bytes) // (most - 1)
    names = {id(module): name for name, module in base_model(trained).named_modules()}
    linears = [
        module.weight.numel()
        for module in base_model(trained).modules()
        if isinstance(module, nn.Linear)
        and not module.weight.requires_grad
        and not names[id(module)].replace(".base_layer", "").startswith(tuple(skipped))
        and "lora_" not in names[id(module)]
    ]
    copied = sum(p.numel() for name, p in trained.named_parameters() if "original_module" in name.split("."))
    return StepCount(
        num_parameters=sum(number for number, _ in parts.values()),
        num_trained=sum(number for _, number in parts.values()),
        num_linear=sum(linears),
        num_copied=copied,
        num_layers=model.config.get_text_config().num_hidden_layers,
        parts=parts,
        flops=flops,
        fixed_bytes=max(least_bytes - sample_bytes, 0),
        sample_bytes=sample_bytes,
        width=dtype.itemsize,
    )


def _count_pass(
    model: PlannedModel, trained: nn.Module, settings: TrainSettings, shape: SampleShape, size: int, dtype: torch.dtype
) -> tuple[int, int]:
    """Operations and most memory of a micro-batch."""
    task, batch = prepare_step(model, trained, settings, shape, size)
    inputs = task.make_batch(meta_floats(batch, dtype), task.options(0)).inputs
    for parameter in trained.parameters():
        parameter.grad = None
    with silent_libraries(), counting(trained, inputs) as count:
        loss, _ = task.forward(inputs)
        loss.backward()
    return count.flops, count.peak_bytes


def prepare_step(
    model: PlannedModel, trained: nn.Module, settings: TrainSettings, shape: SampleShape, size: int
) -> tuple[AnswersTask, dict[str, torch.Tensor]]:
    """The recipe's task, and a micro-batch of made-up samples as its collator returns it.

    Args:
        model: What is trained.
        trained: The same as a module, adapted by the task, with weights or without.
        settings: The recipe.
        shape: How long samples are.
        size: Samples.
    """
    task_class: type[AnswersTask] = load_named(model.spec.task)
    sizes = {"batch_size": size, "micro_batch_size": size, "samples_per_image": 1}
    chosen = replace(settings.optimization, num_steps=1, num_epochs=None, **sizes)
    question, answer = (model.write_words(n) for n in (shape.num_prompt_tokens, shape.num_answer_tokens))
    messages = (
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    )
    samples = _Samples(
        Sample("", messages, (model.draw_image(shape, number),), (model.write_scene(shape, number),))
        for number in range(size)
    )
    collator = task_class.collator_class(model.processor, model.verbalizers)
    task = task_class(replace(settings, optimization=chosen), trained, samples, collator)
    task.set_training_mode()
    return task, dict(collator(samples))


@dataclass(frozen=True)
class Cluster:
    """What it is trained on.

    Attributes:
        num_gpus: How many.
        memory_gb: Of one, 10^9 bytes.
        peak_tflops: Of one, bfloat16, dense: 989 for H100 and H200 (NVIDIA's data sheet).
        efficiency: Share of the peak that is reached.
        bandwidth_gb: Of the slowest link of one GPU in an all-reduce, 10^9 bytes per second.
    """

    num_gpus: int
    memory_gb: float = 80.0
    peak_tflops: float = 989.0
    efficiency: float = EFFICIENCY
    bandwidth_gb: float = 50.0


@dataclass(frozen=True)
class StepPlan:
    """What a run takes, per GPU.

    Attributes:
        weights: Bytes of frozen weights and untouched copies.
        trained: Bytes of trained weights, moments, and what of gradients lives longer than a pass.
        activations: Bytes of the passes at ``micro_batch``.
        micro_batch: Samples per GPU and forward pass; 0 where not even one fits.
        step_s: Seconds of an optimizer step.
        hours: Of all samples.
    """

    weights: float
    trained: float
    activations: float
    micro_batch: int
    step_s: float
    hours: float

    @property
    def peak(self) -> float:
        """Bytes together."""
        return self.weights + self.trained + self.activations

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers by name."""
        return asdict(self) | {"peak": self.peak}


def plan_step(
    count: StepCount,
    cluster: Cluster,
    *,
    num_samples: int,
    batch_size: int,
    is_quantized: bool = False,
    is_sharded: bool = False,
) -> StepPlan:
    """Memory and time from counts.

    Args:
        count: Of one sample.
        cluster: The machines.
        num_samples: Of the whole run.
        batch_size: Samples per optimizer step, over all GPUs.
        is_quantized: Frozen linears are nf4.
        is_sharded: FSDP2 or ZeRO-3: weights, gradients and moments in pieces.

    Returns:
        The plan. The largest micro-batch that fits is taken; communication is not overlapped.
    """
    gpus, width = cluster.num_gpus, count.width
    frozen = count.num_parameters - count.num_trained
    weights = (frozen - count.num_linear) * width + count.num_linear * (NF4_BYTES if is_quantized else width)
    weights += count.num_copied * width
    trained: float = count.trained_bytes
    if is_sharded:  # and two layers are whole at any time: the one that works and the next
        weights = weights / gpus + 2 * count.num_linear / count.num_layers * width
        trained /= gpus
    elif gpus > 1:
        trained += count.num_trained * 4  # DDP's buckets
    free = cluster.memory_gb * 1e9 * _USABLE - weights - trained - count.fixed_bytes
    share = max(1, batch_size // gpus)
    sizes = [1 << exponent for exponent in range(8) if 1 << exponent <= min(share, _LARGEST_MICRO_BATCH)]
    micro_batch = max((size for size in sizes if size * count.sample_bytes <= free), default=0)
    step_s = count.flops * share / (cluster.peak_tflops * 1e12 * cluster.efficiency)
    sent = 2 * (gpus - 1) / gpus * count.num_trained * 4  # a ring all-reduce of float32 gradients
    if is_sharded:
        sent += 2 * (gpus - 1) / gpus * count.num_parameters * width  # weights are gathered forward and backward
    step_s += sent / (cluster.bandwidth_gb * 1e9)
    hours = step_s * num_samples / (share * gpus) / 3600
    activations = count.fixed_bytes + micro_batch * count.sample_bytes
    return StepPlan(weights, trained, activations, micro_batch, step_s, hours)
