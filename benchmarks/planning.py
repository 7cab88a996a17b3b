"""What ``moai plan`` counts beside what real calls take: operations, memory and seconds of an answer and of a step.

    python -m benchmarks.planning [MODEL ...] [--recipe RECIPE]

For every model: its own weights are loaded in 32 bits, a batch is answered and, with a recipe, a micro-batch is
trained. Memory is what torch allocates, weights left out; seconds are the processor's own, beside those that the
counted operations take at the speed of a large matrix product.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.flops import count_flops
from benchmarks.measurement import markdown_table
from moai.checkpoints.io.lookup import find_checkpoint
from moai.models.registry import load_named
from moai.planning.inference import count_answer, encode_questions, weigh_cache
from moai.planning.planned_model import PlannedModel, SampleShape
from moai.planning.training import count_step, prepare_step
from moai.training.train_settings import TrainSettings, load_settings

__all__ = ["Compared", "compare_answer", "compare_step", "main"]


@dataclass(frozen=True)
class Compared:
    """Counted and measured numbers of one call.

    Attributes:
        name: Model and call.
        counted_flops: Operations, as the plan has them.
        flops: Operations of the call.
        counted_bytes: Most memory beside the weights, as the plan has it.
        peak_bytes: Most memory of the call.
        seconds: Of the call, of this process's own.
        counted_weights: Bytes of the weights in 32 bits, as the plan has them; of an answer.
        weights: Likewise, of the loaded model.
        counted_cache: Bytes of keys and values of a whole sequence, as the plan has them; of an answer.
        cache: Likewise, of the call.
    """

    name: str
    counted_flops: int
    flops: int
    counted_bytes: int
    peak_bytes: int
    seconds: float
    counted_weights: int = 0
    weights: int = 0
    counted_cache: int = 0
    cache: int = 0


def measure_call(call: Callable[[], object]) -> tuple[int, int, float]:
    """Operations, most memory and seconds of a call, which runs three times."""
    flops = count_flops(call).total_in_full
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    live = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    began = time.process_time()
    call()
    return flops, peak, (time.process_time() - began) / torch.get_num_threads()


def compare_answer(name: str, shape: SampleShape, batch_size: int = 2) -> Compared:
    """Answer a batch, counted and for real.

    Args:
        name: Checkpoint.
        shape: Of questions and answers.
        batch_size: Questions at a time.
    """
    model = PlannedModel.load(name)
    counted = count_answer(model, shape, batch_size, torch.float32)
    loaded = model.answering.load_model(find_checkpoint(name), dtype=torch.float32).eval()
    loaded.generation_config.eos_token_id = None
    answering = model.answering(loaded, model.processor)
    inputs = encode_questions(model, answering, shape, batch_size)
    if (maps := inputs.get("auxiliary_pixel_values")) is not None:  # equal ones are encoded once; real ones differ
        inputs["auxiliary_pixel_values"] = maps + 0.01 * torch.arange(len(maps)).view(-1, 1, 1, 1)

    def answer(num_tokens: int = 1) -> None:
        if hasattr(answering, "encoded"):
            answering.encoded.forget()  # a scene that is new
        answering.generate(inputs, {}, False, max_new_tokens=num_tokens, num_beams=1)

    with torch.inference_mode():
        real = measure_call(answer)
        caches: list[int] = []
        hook = loaded.register_forward_hook(
            lambda module, given, output: caches.append(weigh_cache(getattr(output, "past_key_values", None)))
        )
        answer(shape.num_answer_tokens)
        hook.remove()
    return Compared(
        f"{model.config.model_type}: answer",
        counted.prompt_flops,
        real[0],
        counted.prompt_bytes,
        *real[1:],
        int(model.size.to_bytes(16, other_bytes=4)),
        sum(parameter.nbytes for parameter in loaded.parameters()),
        counted.cache_bytes,
        caches[-1],
    )


def compare_step(name: str, settings: TrainSettings, shape: SampleShape) -> Compared:
    """Train a micro-batch, counted and for real.

    Args:
        name: Checkpoint.
        settings: Its recipe.
        shape: Of samples.
    """
    model, size = PlannedModel.load(name), settings.optimization.micro_batch_size
    counted = count_step(model, settings, shape)
    loaded = model.answering.load_model(find_checkpoint(name), dtype=torch.float32)
    trained = load_named(model.spec.task).adapt(loaded, settings)
    if settings.model.gradient_checkpointing:
        loaded.activation_checkpointing_enable()
    task, batch = prepare_step(model, trained, settings, shape, size)
    inputs = task.make_batch(batch, task.options(0)).inputs

    def step() -> None:
        trained.zero_grad()
        task.forward(inputs)[0].backward()

    peak = counted.fixed_bytes + size * counted.sample_bytes
    real = measure_call(step)
    return Compared(f"{model.config.model_type}: step of {size}", size * counted.flops, real[0], peak, *real[1:])


def _time_product(side: int = 1024, repeats: int = 6) -> float:
    """Operations per second of a large matrix product."""
    left, right = torch.randn(2, side, side)
    left @ right
    began = time.process_time()
    for _ in range(repeats):
        left @ right
    return 2 * side**3 * repeats / (time.process_time() - began) * torch.get_num_threads()


def format_rows(rows: list[Compared]) -> str:
    """A Markdown table; ratios are counted / measured."""
    speed = _time_product()
    header = ["", "GFLOP counted", "measured", "ratio", "MB counted", "measured", "ratio", "s", "of a product's speed"]
    header += ["weights", "cache"]
    lines = [
        [
            row.name,
            f"{row.counted_flops / 1e9:.4g}",
            f"{row.flops / 1e9:.4g}",
            f"{row.counted_flops / row.flops:.3f}",
            f"{row.counted_bytes / 1e6:.4g}",
            f"{row.peak_bytes / 1e6:.4g}",
            f"{row.counted_bytes / row.peak_bytes:.3f}",
            f"{row.seconds:.3f}",
            f"{row.counted_flops / row.seconds / speed:.0%}",
            f"{row.counted_weights / row.weights:.3f}" if row.weights else "",
            f"{row.counted_cache / row.cache:.3f}" if row.cache else "",
        ]
        for row in rows
    ]
    return "\n".join(markdown_table(header, lines))


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", default=["moai-nano"], help="checkpoints")
    parser.add_argument("--recipe", help="also train a micro-batch by it")
    chosen, shape = parser.parse_args(arguments), SampleShape(40, 120, 24)
    rows = []
    for name in chosen.models:
        rows.append(compare_answer(name, shape))
        if chosen.recipe:
            rows.append(compare_step(name, load_settings(chosen.recipe, [f"model.path={name}"]), shape))
    print(format_rows(rows))


if __name__ == "__main__":
    main()
