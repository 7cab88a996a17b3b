"""Timing of real training steps of a small model, for comparison with their counts."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from moai.models.moai.configuration_moai import MoAIConfig
from moai.models.moai.modeling_moai import MoAIForConditionalGeneration
from moai.models.moai.task_moai import MoAITask, compute_loss
from moai.processing.token_roles import IGNORE_INDEX, IMAGE_ROLE, LANGUAGE_ROLE

from .flop_counting import SampleShape, count_step
from .tasks.answers import target_window
from .train_settings import TrainSettings

__all__ = ["Timing", "measure_efficiency"]

_SHAPE = SampleShape(num_prompt_tokens=40, num_answer_tokens=24, num_auxiliary_tokens=120)


@dataclass(frozen=True)
class Timing:
    """Measured speed of a machine.

    Attributes:
        device: ``cpu`` or ``cuda``.
        step_flops: Counted for forward and backward pass of the batch.
        step_s: Measured; on a CPU the seconds that this process computed, so that a busy machine does not count.
        matmul_flops_per_s: Reached by one large matrix product of the same dtype.
        peak_bytes: Most memory in use on a GPU; 0 on a CPU.
    """

    device: str
    step_flops: float
    step_s: float
    matmul_flops_per_s: float
    peak_bytes: int

    @property
    def share_of_matmul(self) -> float:
        """Counted operations per second over those of the matrix product."""
        return self.step_flops / self.step_s / self.matmul_flops_per_s

    def __str__(self) -> str:
        text = (
            f"{self.device}: {self.step_flops / 1e9:.1f} GFLOP counted, {self.step_s:.3f} s measured = "
            f"{self.step_flops / self.step_s / 1e9:.1f} GFLOP/s; a large matrix product reaches "
            f"{self.matmul_flops_per_s / 1e9:.1f} GFLOP/s, so a step reaches {self.share_of_matmul:.0%} of it"
        )
        return text + (f"; {self.peak_bytes / 1e9:.2f} GB at most" if self.peak_bytes else "") + "."


def _small_config(is_gpu: bool) -> MoAIConfig:
    """The 7B model's proportions: narrow enough for a CPU, wide enough to fill a GPU."""
    width, layers, side = (2048, 16, 490) if is_gpu else (256, 8, 112)
    text = {"model_type": "llama", "vocab_size": 4000, "hidden_size": width, "intermediate_size": 7 * width // 2}
    text |= {"num_hidden_layers": layers, "num_attention_heads": width // 64, "num_key_value_heads": width // 256}
    vision = {"model_type": "clip_vision_model", "hidden_size": width // 4, "intermediate_size": width}
    vision |= {"num_hidden_layers": 6, "num_attention_heads": 4, "image_size": side, "patch_size": 14}
    return MoAIConfig(
        vision_config=vision,
        text_config=text,
        compressor={"architecture": "perceiver"},
        image_token_id=3999,
    )


def _clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() / torch.get_num_threads()


def _time_matmul(device: str, dtype: torch.dtype) -> float:
    side, repeats = (8192, 20) if device == "cuda" else (1024, 6)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    left @ right
    began = _clock(device)
    for _ in range(repeats):
        left @ right
    return 2 * side**3 * repeats / (_clock(device) - began)


def measure_efficiency(settings: TrainSettings, num_steps: int = 3) -> Timing:
    """Time forward and backward passes of a new, random model on a GPU where there is one, else on the CPU.

    Args:
        settings: The trained model.
        num_steps: Steps that are timed, after one that is not.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    config = _small_config(device == "cuda")
    batch_size = 8 if device == "cuda" else 2
    torch.manual_seed(0)
    model = MoAITask.adapt(MoAIForConditionalGeneration(config).to(device, dtype), settings)
    model.train()
    batch = _draw_batch(config, batch_size, device, dtype)
    window = target_window(batch["labels"])
    routing = {"mode": settings.routing_mode, "top_k": settings.top_k}
    began = 0.0
    for index in range(num_steps + 1):
        if index == 1:
            began = _clock(device)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss, _ = compute_loss(model, batch, routing, window)
        loss.backward()
        model.zero_grad()
    seconds = (_clock(device) - began) / num_steps
    count = count_step(config, settings, _SHAPE)
    flops = batch_size * (count.forward_flops + count.backward_flops)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return Timing(device, flops, seconds, _time_matmul(device, dtype), peak)


def _draw_batch(config: MoAIConfig, size: int, device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Random samples of :data:`_SHAPE`."""
    patches, side = config.num_image_tokens or 0, config.vision_config.image_size
    answer = _SHAPE.num_answer_tokens
    words = torch.randint(10, 3000, (size, _SHAPE.num_prompt_tokens + answer))
    ids = torch.cat([torch.full((size, patches), config.image_token_id), words], dim=1)
    roles = torch.full_like(ids, LANGUAGE_ROLE)
    roles[:, :patches], roles[:, -answer:] = IMAGE_ROLE, 0
    labels = ids.clone()
    labels[:, :-answer] = IGNORE_INDEX
    auxiliary = torch.randint(10, 3000, (size, _SHAPE.num_auxiliary_tokens))
    pixels = torch.randn(2, size, 3, side, side, dtype=dtype)
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": roles,
        "labels": labels,
        "pixel_values": pixels[0],
        "auxiliary_input_ids": auxiliary,
        "auxiliary_attention_mask": torch.ones_like(auxiliary),
        "auxiliary_pixel_values": pixels[1],
    }
    return {name: value.to(device) for name, value in batch.items()}
