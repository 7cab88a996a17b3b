"""A MoAI beside LLaVA with the same vision tower and decoder: what `python -m benchmarks.forward --llava` measures."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from benchmarks.forward_variants import NUM_DECODE_STEPS
from benchmarks.measurement import Spread, markdown_table, paired_ratio, peak_memory_mib, time_alternating
from moai import MoAIForConditionalGeneration, MoAIProcessor
from moai.models.cache_names import as_keyword, read_cache

__all__ = ["describe_llava"]

MOAI, TEXT_ALONE, LLAVA = "MoAI", "MoAI without a map", "LLaVA"
PHASES = ("processor", "prefill", "decode", "generate", "training")
NUM_NEW_TOKENS = 16
NUM_ANSWER_TOKENS = 8
QUESTION = "What is in the image, and where? Say it in one sentence."
VERBALIZATION = (
    "The image includes bounding box coordinates and their objects: [0.10, 0.20, 0.30, 0.40] cat, [0.52, 0.31, 0.88, "
    "0.79] dog, [0.05, 0.60, 0.25, 0.95] tree. The cat is left of the dog. The dog is in front of the tree."
)


def build_llava(model: MoAIForConditionalGeneration) -> LlavaForConditionalGeneration:
    """LLaVA with the weights of a MoAI's tower and decoder, and a projector of its own."""
    config = LlavaConfig(
        vision_config=model.config.vision_config,
        text_config=model.config.text_config,
        image_token_index=model.config.image_token_id,
        image_seq_length=model.config.num_image_tokens,
        vision_feature_layer=model.config.vision_feature_layer,
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        tie_word_embeddings=model.config.tie_word_embeddings,
    )
    peer = LlavaForConditionalGeneration(config).to(model.device, model.dtype).eval()
    peer.model.vision_tower.load_state_dict(model.model.vision_tower.state_dict())
    peer.model.language_model.load_state_dict(model.model.language_model.state_dict())
    peer.lm_head.load_state_dict(model.lm_head.state_dict())
    peer.generation_config = model.generation_config
    return peer


class PeerRunner:
    """One model with its processor on one batch: the phases that are timed.

    Args:
        model: The model.
        prepare: Makes its inputs.
    """

    def __init__(self, model: Any, prepare: Callable[[], Any]) -> None:
        self.model, self.processor = model, prepare
        self.inputs = prepare()
        self.labels = self.inputs["input_ids"].clone()
        self.labels[:, :-NUM_ANSWER_TOKENS] = -100
        self.cache: Any = None

    @torch.no_grad()
    def prefill(self) -> None:
        """A prompt to its next token's logits, filling the cache for :meth:`decode`."""
        self.cache = read_cache(self.model(**self.inputs, use_cache=True, logits_to_keep=1))

    @torch.no_grad()
    def decode(self) -> None:
        """Decode steps on the filled cache, forgotten again."""
        for _ in range(NUM_DECODE_STEPS):
            self.model(input_ids=self.inputs["input_ids"][:, -1:], use_cache=True, **as_keyword(self.cache))
        self.cache.crop(-NUM_DECODE_STEPS)

    def generate(self) -> None:
        """All of an answer of fixed length."""
        self.model.generate(
            **self.inputs, max_new_tokens=NUM_NEW_TOKENS, min_new_tokens=NUM_NEW_TOKENS, do_sample=False
        )

    def training(self) -> None:
        """Forward pass, loss, backward pass; the vision tower does not learn."""
        self.model.zero_grad(set_to_none=True)
        self.model(**self.inputs, labels=self.labels, use_cache=False).loss.backward()


def build_peers(checkpoint: str, device: torch.device) -> tuple[MoAIForConditionalGeneration, Any, MoAIProcessor, Any]:
    """A MoAI, its LLaVA, and the processors of both."""
    torch.manual_seed(0)
    model = MoAIForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval().to(device)
    processor = MoAIProcessor.from_pretrained(checkpoint)
    peer = build_llava(model)
    for one in (model, peer):
        one.model.vision_tower.requires_grad_(False)
    strategy = model.config.vision_feature_select_strategy
    peer_processor = LlavaProcessor(
        processor.image_processor,
        processor.tokenizer,
        patch_size=model.config.vision_config.patch_size,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(strategy == "default"),
    )
    return model, peer, processor, peer_processor


def build_peer_runners(peers: tuple[Any, ...], batch: int) -> dict[str, PeerRunner]:
    """All variants on the same images and questions."""
    model, peer, processor, peer_processor = peers
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)) for _ in range(batch)]
    maps = [Image.fromarray(rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)) for _ in range(batch)]
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}

    def ours(**auxiliary: Any) -> Any:
        texts = {"questions": [QUESTION] * batch, "auxiliary_text": [VERBALIZATION] * batch}
        inputs = processor(images=images, **texts, **auxiliary, return_tensors="pt")
        return {name: value.to(model.device) for name, value in inputs.items()}

    def theirs() -> Any:
        prompt = processor.apply_chat_template([message], add_generation_prompt=True)
        inputs = peer_processor(images=images, text=[prompt] * batch, return_tensors="pt")
        kept = ("input_ids", "attention_mask", "pixel_values")
        return {name: inputs[name].to(model.device) for name in kept}

    runners = {
        MOAI: PeerRunner(model, partial(ours, auxiliary_images=maps)),
        TEXT_ALONE: PeerRunner(model, ours),
        LLAVA: PeerRunner(peer, theirs),
    }
    assert torch.equal(runners[MOAI].inputs["input_ids"], runners[LLAVA].inputs["input_ids"])
    return runners


def _peak_of_child(call: Callable[[], None], device: torch.device) -> float:
    """Peak memory of a call in a child that forgets it; see :func:`.measurement.peak_memory_mib`."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.write(write, f"{peak_memory_mib(call, device):.3f}".encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        told = file.read()
    os.waitpid(child, 0)
    return float(told or "nan")


def describe_llava(
    checkpoint: str, batches: list[int], num_rounds: int, device: torch.device, clock: Callable[[], float]
) -> str:
    """Measure and tell: one table of milliseconds, ratios and peak memory.

    Args:
        checkpoint: A MoAI: folder or hub name.
        batches: Batch sizes.
        num_rounds: Timed rounds.
        device: Where.
        clock: Seconds so far.

    Returns:
        Markdown.
    """
    peers = build_peers(checkpoint, device)
    every = {batch: build_peer_runners(peers, batch) for batch in batches}
    for runner in every[batches[0]].values():
        runner.prefill()  # what is loaded late
    # Before the first backward pass, whose threads no child has; each child computes on memory of its own.
    peaks = {
        (batch, phase): [_peak_of_child(getattr(runner, phase), device) for runner in runners.values()]
        for batch, runners in every.items()
        for phase in ("prefill", "training")
    }
    rows = []
    for phase in PHASES:
        for batch, runners in every.items():
            for runner in runners.values():
                runner.prefill()
            per_call = NUM_DECODE_STEPS if phase == "decode" else 1
            calls = {name: getattr(runner, phase) for name, runner in runners.items()}
            times = time_alternating(calls, num_rounds * per_call, device, clock=clock)
            medians = [f"{Spread.of(values).median / per_call:.1f}" for values in times.values()]
            ratios = [paired_ratio(times[name], times[LLAVA]).shown(2) for name in (MOAI, TEXT_ALONE)]
            memory = [f"{value:.0f}" for value in peaks.get((batch, phase), ())] or ["", "", ""]
            rows.append([phase, str(batch), *medians, *ratios, " / ".join(memory).strip(" /")])
    num_text = int(every[batches[0]][MOAI].inputs["auxiliary_attention_mask"][0].sum())
    length = every[batches[0]][MOAI].inputs["input_ids"].shape[1]
    header = ["phase", "batch", *(f"{name}, ms" for name in (MOAI, TEXT_ALONE, LLAVA))]
    header += [f"{MOAI} / {LLAVA}", "without a map", "peak MiB of the three"]
    told = f"{length} tokens in the prompt, {peers[0].config.num_image_tokens} of an image; {num_text} auxiliary tokens"
    told += f"; {NUM_NEW_TOKENS} new tokens in generate; at most {num_rounds * NUM_DECODE_STEPS} rounds"
    return "\n".join([told, "", *markdown_table(header, rows)])
