"""Whether experts can still learn where to look: how much of a token's attention lies on a single source token.

    python -m benchmarks.saturation moai-nano --scenes 40

Attention with all its weight on one token passes no gradient to queries and keys. `MixerConfig.qk_norm` bounds what
it can reach; without, long training of a mixer may end there.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import torch

from benchmarks.measurement import markdown_table
from mixer import IMAGE_EXPERTS, LANGUAGE_EXPERTS
from mixer.experts import Expert
from moai.checkpoints.io.lookup import find_checkpoint
from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from moai.models.moai.modeling_moai import MoAIForConditionalGeneration
from moai.models.moai.processing_moai import MoAIProcessor
from moai.scenes.scenes import Scenes
from verbalizers.core.scene import render_segmentation_map, verbalize_scene
from verbalizers.core.words import WordSettings

__all__ = ["measure_attention"]


def _attention(expert: Expert, tokens: torch.Tensor, source: object, mask: torch.Tensor | None) -> torch.Tensor:
    """What an expert's softmax is taken of, ``(B, H, N, S)``; -inf where nothing is read."""
    keys, _ = expert.project(source) if isinstance(source, torch.Tensor) else source
    logits = expert.project_queries(tokens) @ keys.transpose(-1, -2) / keys.shape[-1] ** 0.5
    return logits if mask is None else logits.masked_fill(~mask[:, None, None], float("-inf"))


@torch.no_grad()
def measure_attention(
    model: MoAIForConditionalGeneration, processor: MoAIProcessor, num_scenes: int, words: WordSettings | None = None
) -> list[tuple[str, float, float, float]]:
    """Measure every expert over questions about validation scenes with true words.

    Args:
        model: In evaluation mode.
        processor: Its own.
        num_scenes: How many; each is asked all its questions.
        words: How the model is used to be told; None = the default.

    Returns:
        A row per expert that read anything: its name, the mean over tokens and heads of the largest weight, of the
        logits' standard deviation over the source, and the mean number of source tokens.
    """
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * 4)

    def watch(name: str):
        def note(expert: Expert, inputs: tuple) -> None:
            logits = _attention(expert, *inputs)
            if min(logits.shape) == 0 or logits.shape[-1] < 2:
                return
            read = logits.masked_fill(logits.isinf(), torch.nan)
            largest, distance = logits.softmax(-1).amax(-1), read - read.nanmean(-1, keepdim=True)
            deviation, count = distance.square().nanmean(-1).sqrt(), (~logits.isinf()).float().sum(-1)
            for place, value in enumerate((largest, deviation, count)):
                sums[name][place] += float(value.sum())
            sums[name][3] += largest.numel()

        return note

    hooks = []
    for layer_idx, layer in zip(model.config.mixer["layers"], model.model.mixers.layers, strict=True):
        for stream, experts, names in (
            ("image", layer.image_experts, IMAGE_EXPERTS),
            ("language", layer.language_experts, LANGUAGE_EXPERTS),
        ):
            for expert, source in zip(experts, names, strict=True):
                hooks.append(expert.register_forward_pre_hook(watch(f"layer {layer_idx}, {stream} <- {source}")))
    try:
        for sample in Scenes("validation", num_questions=8, length=num_scenes):
            for asked in sample.questions:
                map_ = render_segmentation_map(sample.truth.segments, sample.image_size_hw)
                said = verbalize_scene(sample.truth, settings=words)
                model(**processor(sample.image, None, said, [map_], questions=asked.question))
    finally:
        for hook in hooks:
            hook.remove()
    return [(name, *(value / row[3] for value in row[:3])) for name, row in sums.items()]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="How saturated the experts' attention is.")
    parser.add_argument("model", help="folder or bundled name of a MoAI")
    parser.add_argument("--scenes", type=int, default=40)
    chosen = parser.parse_args()
    folder = find_checkpoint(chosen.model)
    model = MoAIForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    words = VerbalizerSettings.load(folder).words
    rows = measure_attention(model, MoAIProcessor.from_pretrained(folder), chosen.scenes, words)
    shown = [[name, f"{largest:.2f}", f"{spread:.1f}", f"{count:.0f}"] for name, largest, spread, count in rows]
    print("\n".join(markdown_table(["expert", "largest weight", "deviation of logits", "source tokens"], shown)))


if __name__ == "__main__":
    main()
