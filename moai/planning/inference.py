"""Memory and time of an answer: the model answers once without numbers and is counted meanwhile.

Weights, cache and activations are what a load has; of a device's peak a share is assumed to be reached:
:data:`EFFICIENCY` of its operations, :data:`BANDWIDTH_SHARE` of its bandwidth.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import BatchFeature

from moai.checkpoints.io.published_settings import PUBLISHED_DETECTOR, PUBLISHED_SEGMENTER
from moai.models.answering import Answering
from verbalizers import Verbalizer

from .counting import counting
from .planned_model import PlannedModel, SampleShape, silent_libraries
from .weight_sizes import build_empty, count_published_verbalizers

__all__ = [
    "BANDWIDTH_SHARE",
    "DEVICES",
    "EFFICIENCY",
    "AnswerCount",
    "AnswerPlan",
    "Device",
    "count_answer",
    "encode_questions",
    "measure_verbalizers",
    "plan_answer",
    "weigh_cache",
]

EFFICIENCY, BANDWIDTH_SHARE = 0.35, 0.6
_WEIGHT_FILES = ("*.safetensors", "*.onnx", "*.bin", "*.pt", "*.pdiparams")


@dataclass(frozen=True)
class Device:
    """Where a model runs, as its maker's data sheet has it.

    Attributes:
        name: Its name.
        memory_gb: 10^9 bytes.
        peak_tflops: bfloat16 (float16 where it has none), dense.
        bandwidth_gb: Of its memory, 10^9 bytes per second.
    """

    name: str
    memory_gb: float
    peak_tflops: float
    bandwidth_gb: float


DEVICES = (
    Device("H100", 80, 989, 3350),
    Device("A100", 80, 312, 2039),
    Device("RTX 4090", 24, 165, 1008),
    Device("L4", 24, 121, 300),
    Device("T4", 16, 65, 320),
)


@dataclass(frozen=True)
class AnswerCount:
    """What was counted while a batch was answered.

    Attributes:
        batch_size: Questions at a time.
        prompt_length: Tokens in front of the answer, images that stand among them included.
        prompt_flops: Operations until the first token.
        token_flops: Operations of the next one.
        prompt_bytes: Most memory until the first token, beside the weights.
        cache_bytes: Keys and values of the whole sequence, answer included.
        logits_bytes: Of a step, in 32 bits and a copy.
    """

    batch_size: int
    prompt_length: int
    prompt_flops: int
    token_flops: int
    prompt_bytes: int
    cache_bytes: int
    logits_bytes: int


def count_answer(
    model: PlannedModel, shape: SampleShape, batch_size: int = 1, dtype: torch.dtype = torch.bfloat16
) -> AnswerCount:
    """Answer a batch without numbers.

    Args:
        model: The model.
        shape: Of questions and answers.
        batch_size: Questions at a time.
        dtype: Of weights and activations.
    """
    empty = build_empty(model.config).to(dtype).eval()
    empty.generation_config.eos_token_id = None  # the ids that come out are no words
    answering = model.answering(empty, model.processor)
    sizes: list[int] = []
    hook = empty.register_forward_hook(
        lambda module, inputs, output: sizes.append(weigh_cache(getattr(output, "past_key_values", None)))
    )
    with silent_libraries(), torch.inference_mode():
        with counting(empty):
            inputs = encode_questions(model, answering, shape, batch_size)
        counts = []
        for num_tokens in (1, 3):
            sizes.clear()
            with counting(empty, dict(inputs)) as count:
                answering.generate(inputs, {}, False, max_new_tokens=num_tokens, num_beams=1)
            counts.append(count)
    hook.remove()
    first, three = counts
    growth = sizes[-1] - sizes[-2] if len(sizes) > 1 else 0
    return AnswerCount(
        batch_size,
        inputs["input_ids"].shape[1],
        first.flops,
        (three.flops - first.flops) // 2,
        first.peak_bytes,
        sizes[0] + growth * shape.num_answer_tokens if sizes else 0,
        batch_size * model.config.get_text_config().vocab_size * 8,
    )


def encode_questions(model: PlannedModel, answering: Answering, shape: SampleShape, batch_size: int) -> BatchFeature:
    """Inputs of a batch of made-up questions, on the model's device.

    Args:
        model: The model.
        answering: What answers, with weights or without.
        shape: Of the questions.
        batch_size: How many.
    """
    images = [model.draw_image(shape, number) for number in range(batch_size)]
    question = model.write_words(shape.num_prompt_tokens)
    prompts = [answering.prepare(image, question, shape.num_answer_tokens) for image in images]
    found = answering.encode_scenes(
        [model.write_scene(shape, number) for number in range(batch_size)], model.verbalizers
    )
    return answering.encode(images, prompts, found, shape.num_answer_tokens)


def weigh_cache(cache: Any) -> int:
    """Bytes of keys and values."""
    if cache is None:
        return 0
    parts = [getattr(cache, name, None) for name in ("self_attention_cache", "cross_attention_cache")]
    layers = getattr(cache, "layers", ())
    tensors = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
    return sum(map(weigh_cache, parts)) + sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor))


@dataclass(frozen=True)
class AnswerPlan:
    """What an answer takes; bytes.

    Attributes:
        bits: Of the linears that are shrunk.
        is_all: Whether those of vision tower, compressor and head are shrunk too (``--quantize-all``).
        weights: Of the model.
        cache: Keys and values of the whole sequence, in 16 bits.
        activations: The most at one time beside them, a dequantized matrix included.
        verbalizers: Weights of the verbalizers, in 32 bits.
        prompt_flops: Operations until the first token.
        token_flops: Operations of every further one.
        token_bytes: Bytes that are read for every further one.
    """

    bits: int
    is_all: bool
    weights: float
    cache: float
    activations: float
    verbalizers: float
    prompt_flops: float
    token_flops: float
    token_bytes: float

    @property
    def peak(self) -> float:
        """All together."""
        return self.weights + self.cache + self.activations + self.verbalizers

    def seconds_on(self, device: Device) -> tuple[float, float]:
        """Seconds until the first token, and of every further one; without the verbalizers'."""
        flops, read = device.peak_tflops * 1e12 * EFFICIENCY, device.bandwidth_gb * 1e9 * BANDWIDTH_SHARE
        return self.prompt_flops / flops, max(self.token_flops / flops, self.token_bytes / read)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers by name."""
        return asdict(self) | {"peak": self.peak}


def plan_answer(
    model: PlannedModel, count: AnswerCount, bits: int, verbalizer_bytes: float = 0.0, is_all: bool = False
) -> AnswerPlan:
    """What an answer takes with weights of so many bits.

    Args:
        model: The model.
        count: From :func:`count_answer`.
        bits: One of :meth:`.Answering.list_bits`.
        verbalizer_bytes: What stands beside the model.
        is_all: Whether everything is shrunk that can be.
    """
    size = model.size_of_all if is_all and model.size_of_all is not None else model.size
    weights = size.to_bytes(bits)
    # The first token's activations and the answer's cache do not live at one time.
    most = max(count.prompt_bytes, count.cache_bytes + count.logits_bytes)
    if bits < 16:
        most += size.largest_linear * 2
    used = count.token_flops / (2 * count.batch_size)  # parameters, as a token multiplies each with one number
    read = used * weights / size.num_parameters + count.cache_bytes
    return AnswerPlan(
        bits,
        is_all,
        weights,
        count.cache_bytes,
        max(most - count.cache_bytes, 0),
        verbalizer_bytes,
        count.prompt_flops,
        count.token_flops,
        read,
    )


def measure_verbalizers(verbalizers: Iterable[Verbalizer]) -> Mapping[str, int | None]:
    """Bytes of verbalizers' weights by kind; None = not known before they are fetched.

    Args:
        verbalizers: Built, not loaded.
    """
    return {one.kind: _measure_verbalizer(one.backend, one.settings()) for one in verbalizers}


def _measure_verbalizer(backend: str, settings: Mapping[str, Any]) -> int | None:
    """Bytes of a verbalizer's weights and of those in its settings (`by_image` has two); None = not known."""
    parts = [part for part in settings.values() if isinstance(part, Mapping) and "backend" in part]
    sizes = [_measure_verbalizer(part["backend"], part) for part in parts]
    checkpoint = settings.get("checkpoint")
    if checkpoint is not None:
        sizes.append(_measure_checkpoint(str(checkpoint)))
    elif not parts:  # a package that brings its weights, or none
        package = importlib.util.find_spec(backend)
        folders = package.submodule_search_locations if package is not None else None
        sizes.append(_measure_folder(Path(folders[0])) if folders else 0)
    return None if None in sizes else sum(filter(None, sizes))


def _measure_checkpoint(checkpoint: str) -> int | None:
    if Path(checkpoint).is_dir():
        return _measure_folder(Path(checkpoint))
    if checkpoint in (PUBLISHED_SEGMENTER, PUBLISHED_DETECTOR):
        segmenter, detector = count_published_verbalizers().values()
        return segmenter if checkpoint == PUBLISHED_SEGMENTER else detector
    return None


def _measure_folder(folder: Path) -> int:
    return sum(path.stat().st_size for pattern in _WEIGHT_FILES for path in folder.rglob(pattern))
