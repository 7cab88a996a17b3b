"""``python -m moai.training.estimate``: memory and time of training MoAI-7B on 1, 8 and 64 GPUs, by counting.

Operations, parameters and activations are counted on the real model (:mod:`moai.training.flop_counting`). Two things
are assumed and can be set: the share of a GPU's peak that is reached, and the bandwidth between GPUs. ``--measure``
finds the first one out where it is run, with a smaller model. ``--weights`` tells how large the published models are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moai.models.moai.configuration_moai import MoAIConfig
from moai.planning.weight_sizes import NF4_BYTES, count_moai, count_published_verbalizers, format_sizes

from .flop_counting import SampleShape, StepCount, count_step
from .train_settings import TrainSettings, load_settings

__all__ = ["Cluster", "Estimate", "estimate_run", "format_table", "main", "moai_7b_config"]

#: Bytes of a parameter in 16 bits.
_HALF = 2.0
#: Weight, gradient and AdamW's two moments in float32.
_TRAINED = 16.0
#: What is left free for fragments, the context and communication.
_USABLE = 0.9
_LARGEST_MICRO_BATCH = 16


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
    efficiency: float = 0.35
    bandwidth_gb: float = 50.0


@dataclass(frozen=True)
class Estimate:
    """One line of the table.

    Attributes:
        weights_gb: Frozen weights and untouched copies, per GPU.
        trained_gb: Trained weights, gradients and moments, per GPU.
        activations_gb: Per GPU, at ``micro_batch``.
        micro_batch: Samples per GPU and forward pass; 0 where not even one fits.
        step_s: Seconds of an optimizer step.
        hours: Of all samples.
    """

    weights_gb: float
    trained_gb: float
    activations_gb: float
    micro_batch: int
    step_s: float
    hours: float

    @property
    def memory_gb(self) -> float:
        """Together, per GPU."""
        return self.weights_gb + self.trained_gb + self.activations_gb


def moai_7b_config() -> MoAIConfig:
    """The paper's model: CLIP ViT-L at 490 px, InternLM2-7B with partial LoRA of rank 256, the release's compressor."""
    return MoAIConfig(plora_rank=256, compressor={"architecture": "perceiver"})


def estimate_run(
    count: StepCount,
    cluster: Cluster,
    *,
    num_samples: int,
    batch_size: int,
    is_quantized: bool = False,
    is_recomputed: bool = True,
    is_sharded: bool = False,
) -> Estimate:
    """Memory and time from counts.

    Args:
        count: Of one sample.
        cluster: The machines.
        num_samples: Of the whole stage.
        batch_size: Samples per optimizer step, over all GPUs.
        is_quantized: The decoder's pretrained matrices are nf4.
        is_recomputed: Gradient checkpointing: layers' inputs are kept, the rest is computed again.
        is_sharded: FSDP2 or ZeRO-3: weights, gradients and moments in pieces.

    Returns:
        The estimate. The largest micro-batch that fits is taken; communication is not overlapped.
    """
    gpus = cluster.num_gpus
    frozen = count.num_parameters - count.num_trained
    weights = (frozen - count.num_linear) * _HALF + count.num_linear * (NF4_BYTES if is_quantized else _HALF)
    weights += count.num_copied * _HALF
    trained = count.num_trained * _TRAINED
    if is_sharded:  # and two layers are whole at any time: the one that works and the next
        weights = weights / gpus + 2 * count.num_linear / count.num_layers * _HALF
        trained /= gpus
    elif gpus > 1:
        trained += count.num_trained * 4  # DDP's buckets
    per_sample = count.saved_bytes
    if is_recomputed:
        per_sample = count.num_layers * count.boundary_bytes + count.layer_bytes + count.outside_bytes
    free = cluster.memory_gb * 1e9 * _USABLE - weights - trained
    share = max(1, batch_size // gpus)
    fitting = [size for size in _powers_of_two(min(share, _LARGEST_MICRO_BATCH)) if size * per_sample <= free]
    micro_batch = max(fitting, default=0)
    flops = count.forward_flops + count.backward_flops + (count.decoder_flops if is_recomputed else 0)
    step_s = flops * share / (cluster.peak_tflops * 1e12 * cluster.efficiency)
    step_s += _communication(count, gpus, is_sharded) / (cluster.bandwidth_gb * 1e9)
    hours = step_s * num_samples / (share * gpus) / 3600
    return Estimate(weights / 1e9, trained / 1e9, micro_batch * per_sample / 1e9, micro_batch, step_s, hours)


def _powers_of_two(limit: int) -> list[int]:
    return [1 << exponent for exponent in range(limit.bit_length()) if 1 << exponent <= limit]


def _communication(count: StepCount, gpus: int, is_sharded: bool) -> float:
    """Bytes that one GPU sends in a step: a ring all-reduce of float32 gradients, or FSDP's gathers besides."""
    share = (gpus - 1) / gpus
    sent = 2 * share * count.num_trained * 4
    if is_sharded:
        sent += 2 * share * count.num_parameters * _HALF  # weights are gathered forward and backward
    return sent


_MODES = {
    "LoRA, bf16": {},
    "QLoRA, nf4": {"is_quantized": True},
    "LoRA, bf16, FSDP2": {"is_sharded": True},
}


def format_table(counts: dict[int, StepCount], clusters: Sequence[Cluster], num_samples: int, batch_size: int) -> str:
    """The table in Markdown.

    Args:
        counts: By stage.
        clusters: Columns' machines.
        num_samples: Per stage.
        batch_size: Samples per optimizer step.
    """
    head = "| Stage | Mode | GPUs | Weights | Trained | Activations | Memory per GPU | Micro-batch | Step | Hours |"
    lines = [head, "| --- " * 2 + "| ---: " * 8 + "|"]
    for stage, count in counts.items():
        for mode, options in _MODES.items():
            for cluster in clusters:
                if cluster.num_gpus == 1 and options.get("is_sharded"):
                    continue
                row = estimate_run(count, cluster, num_samples=num_samples, batch_size=batch_size, **options)
                sizes = (row.weights_gb, row.trained_gb, row.activations_gb, row.memory_gb)
                cells = [f"{size:.1f} GB" for size in sizes] + [str(row.micro_batch or "none fits")]
                cells += [f"{row.step_s:.2f} s", f"{row.hours:.1f}"]
                lines.append(f"| {stage} | {mode} | {cluster.num_gpus} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _describe(config: MoAIConfig, shape: SampleShape, counts: dict[int, StepCount]) -> str:
    patches, prompt, answer = config.num_image_tokens, shape.num_prompt_tokens, shape.num_answer_tokens
    lines = [
        f"A sample: {patches} tokens of an image, {prompt} of a prompt, {answer} of an answer; auxiliary: "
        f"{shape.num_auxiliary_tokens} words and {patches} patches of a map.",
        "",
        "| Stage | Parameters | Trained | Forward | Backward | Repeated | Activations kept | when recomputed |",
        "| --- " + "| ---: " * 7 + "|",
    ]
    for stage, count in counts.items():
        recomputed = count.num_layers * count.boundary_bytes + count.layer_bytes + count.outside_bytes
        flops = " | ".join(
            f"{value / 1e12:.3g} TFLOP" for value in (count.forward_flops, count.backward_flops, count.decoder_flops)
        )
        lines.append(
            f"| {stage} | {count.num_parameters / 1e9:.2f} B | {count.num_trained / 1e6:.0f} M | {flops} | "
            f"{count.saved_bytes / 1e9:.3g} GB | {recomputed / 1e9:.3g} GB |"
        )
    return "\n".join(lines)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m moai.training.estimate", description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="checkpoint or config folder instead of MoAI-7B")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--samples", type=int, default=665_000, help="per stage; default: the size of LLaVA-1.5's mix")
    parser.add_argument("--batch-size", type=int, default=128, help="samples per optimizer step, over all GPUs")
    parser.add_argument("--lora-rank", type=int, default=64)
    parser.add_argument("--memory-gb", type=float, default=Cluster.memory_gb)
    parser.add_argument("--peak-tflops", type=float, default=Cluster.peak_tflops)
    parser.add_argument("--efficiency", type=float, default=Cluster.efficiency)
    parser.add_argument("--bandwidth-gb", type=float, default=Cluster.bandwidth_gb)
    parser.add_argument("--prompt-tokens", type=int, default=SampleShape.num_prompt_tokens)
    parser.add_argument("--answer-tokens", type=int, default=SampleShape.num_answer_tokens)
    parser.add_argument("--auxiliary-tokens", type=int, default=SampleShape.num_auxiliary_tokens)
    parser.add_argument("--weights", action="store_true", help="print only the sizes of the published models")
    parser.add_argument("--measure", action="store_true", help="time real steps of a smaller model on this machine")
    return parser.parse_args(arguments)


def recipe_of(stage: int, lora_rank: int = 64) -> TrainSettings:
    """The paper's recipe of a stage: LoRA, compressor, mixers and projector trained.

    Args:
        stage: 1 or 2.
        lora_rank: Rank of the adapters.
    """
    recipe = {"stage": stage, "output_folder": Path("unused"), "model": {"path": "unused"}}
    return load_settings({**recipe, "optimization": {"num_steps": 1}, "train": {"lora_rank": lora_rank}})


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables.

    Args:
        arguments: Words of the command line; None = those of this process.

    Returns:
        Exit code.
    """
    words = _parse(arguments)
    if words.measure:
        from .step_timing import measure_efficiency

        print(measure_efficiency(recipe_of(2, lora_rank=16)))
        return 0
    config = MoAIConfig.from_pretrained(words.model) if words.model else moai_7b_config()
    if words.weights:
        sizes = {words.model or "MoAI-7B": count_moai(config), **count_published_verbalizers()}
        print(format_sizes(sizes))
        return 0
    shape = SampleShape(words.prompt_tokens, words.answer_tokens, words.auxiliary_tokens)
    counts = {stage: count_step(config, recipe_of(stage, words.lora_rank), shape) for stage in (1, 2)}
    machine = (words.memory_gb, words.peak_tflops, words.efficiency, words.bandwidth_gb)
    clusters = [Cluster(number, *machine) for number in words.gpus]
    print(_describe(config, shape, counts))
    print(
        f"\n{words.samples:,} samples per stage, {words.batch_size} per step; GPUs of {words.memory_gb:g} GB, "
        f"{words.peak_tflops:g} TFLOP/s peak of which {words.efficiency:.0%} are assumed, {words.bandwidth_gb:g} GB/s "
        "between them; activations recomputed.\n"
    )
    print(format_table(counts, clusters, words.samples, words.batch_size))
    return 0


if __name__ == "__main__":
    sys.exit(main())
