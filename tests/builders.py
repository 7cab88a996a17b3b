"""Small real models and inputs for tests: seeded, CPU, a fraction of a second to build.

``from builders import build_tiny_model``: the folder tests/ is on the path, see setup.cfg. Widths are multiples of
64, so that bitsandbytes can quantise them; nothing else about the sizes should matter to a test.
"""

from __future__ import annotations

from typing import Any

import torch

from moai import MoAIConfig, MoAIForConditionalGeneration

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
IMAGE_TOKEN_ID = 255
PAD_TOKEN_ID = 0
BOS_TOKEN_ID, EOS_TOKEN_ID = 1, 2
FIRST_WORD_ID = 3

TINY_VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
TINY_TEXT = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": PAD_TOKEN_ID,
    "bos_token_id": BOS_TOKEN_ID,
    "eos_token_id": EOS_TOKEN_ID,
}
TINY_COMPRESSOR = {"num_latents": 4, "num_layers": 2, "num_heads": 2, "head_dim": 16}
TINY_MIXER = {"layers": [1, 3], "num_heads": 4, "rank": 8}


def build_tiny_config(
    family: str = "llama",
    *,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    compressor: dict[str, Any] | None = None,
    mixer: dict[str, Any] | None = None,
    **fields: Any,
) -> MoAIConfig:
    """Build a configuration of four decoder layers, two of them mixed, and four patches per image.

    Args:
        family: Decoder family, one of :data:`FAMILIES`.
        text: Fields that replace those of :data:`TINY_TEXT`.
        vision: Fields that replace those of :data:`TINY_VISION`.
        compressor: Fields that replace those of :data:`TINY_COMPRESSOR`.
        mixer: Fields that replace those of :data:`TINY_MIXER`.
        **fields: Other fields of ``MoAIConfig``, for example ``plora_rank=4``.
    """
    return MoAIConfig(
        vision_config=TINY_VISION | (vision or {}),
        text_config={"model_type": family} | TINY_TEXT | (text or {}),
        compressor=TINY_COMPRESSOR | (compressor or {}),
        mixer=TINY_MIXER | (mixer or {}),
        **{"image_token_id": IMAGE_TOKEN_ID} | fields,
    )


def build_tiny_model(
    family: str = "llama", *, seed: int = 0, config: MoAIConfig | None = None, **fields: Any
) -> MoAIForConditionalGeneration:
    """Build a seeded model in evaluation mode whose mixture is loud.

    A new mixture is meant to start near the identity with even gates; a test that must notice whether the
    mixture ran, or which expert spoke, needs gates that differ and outputs of full size.

    Args:
        family: Decoder family.
        seed: Seed of the weights.
        config: Ready configuration; otherwise ``fields`` go to :func:`build_tiny_config`.
        **fields: See :func:`build_tiny_config`.
    """
    torch.manual_seed(seed)
    model = MoAIForConditionalGeneration(config or build_tiny_config(family, **fields))
    with torch.no_grad():
        for mixer in model.model.mixers.layers:
            for gate in (mixer.image_gate, mixer.language_gate):
                gate.weight.normal_()
                gate.bias.normal_()
            for expert in (*mixer.image_experts, *mixer.language_experts):
                expert.output.up.mul_(4)
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b"):  # zero at birth: partial LoRA would be silent
                parameter.normal_(std=0.1)
    return model.eval()


def build_tiny_inputs(
    config: MoAIConfig,
    num_words: tuple[int, ...] = (5, 3),
    num_auxiliary_words: tuple[int, ...] = (6, 4),
    *,
    has_map: bool = True,
    seed: int = 1,
) -> dict[str, torch.Tensor]:
    """Draw a left-padded batch: one image per sample, then words; auxiliary words and a map.

    Args:
        config: Whose ids and sizes to use.
        num_words: Words of each sample's prompt after the image.
        num_auxiliary_words: Words of each sample's auxiliary text; same length as ``num_words``.
        has_map: Add a panoptic map.
        seed: Seed of the draws. The draws of one sample do not depend on how long the others are.

    Returns:
        Keyword arguments of the model, as the processor returns them.
    """
    images, maps, prompts, auxiliaries = [], [], [], []
    for index, (words, auxiliary_words) in enumerate(zip(num_words, num_auxiliary_words, strict=True)):
        generator = torch.Generator().manual_seed(1000 * seed + index)
        size = config.vision_config.image_size
        images.append(torch.randn(3, size, size, generator=generator))
        maps.append(torch.randn(3, size, size, generator=generator))
        high = min(config.image_token_id, config.text_config.vocab_size)
        prompt = torch.randint(FIRST_WORD_ID, high, (words,), generator=generator)
        prompts.append(torch.cat([torch.full((config.num_image_tokens,), config.image_token_id), prompt]))
        auxiliaries.append(torch.randint(FIRST_WORD_ID, high, (auxiliary_words,), generator=generator))
    input_ids, attention_mask = _pad_left(prompts)
    auxiliary_input_ids, auxiliary_attention_mask = _pad_left(auxiliaries)
    roles = torch.where(input_ids == config.image_token_id, 1, 2) * attention_mask
    inputs = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "mm_token_type_ids": roles,
        "pixel_values": torch.stack(images),
        "auxiliary_input_ids": auxiliary_input_ids,
        "auxiliary_attention_mask": auxiliary_attention_mask,
    }
    return inputs | ({"auxiliary_pixel_values": torch.stack(maps)} if has_map else {})


def _pad_left(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Join rows of ids to ``(B, L)`` ids and a ``(B, L)`` int64 mask, 1 = a token."""
    longest = max(len(row) for row in rows)
    ids = torch.stack([torch.cat([row.new_full((longest - len(row),), PAD_TOKEN_ID), row]) for row in rows])
    counts = torch.tensor([len(row) for row in rows])
    mask = torch.arange(longest).flip(0)[None] < counts[:, None]
    return ids, mask.long()


def take_single(inputs: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    """Take one sample of a batch, without its padding."""
    single = {name: value[row : row + 1] for name, value in inputs.items()}
    for prefix, names in (("", ("input_ids", "mm_token_type_ids", "labels")), ("auxiliary_", ("input_ids",))):
        kept = single[f"{prefix}attention_mask"][0].bool()
        for name in ("attention_mask", *names):
            if prefix + name in single:
                single[prefix + name] = single[prefix + name][:, kept]
    return single


def add_labels(inputs: dict[str, torch.Tensor], num_answer: int = 3) -> dict[str, torch.Tensor]:
    """Call the last tokens of each sample its answer."""
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -num_answer:] = inputs["input_ids"][:, -num_answer:]
    roles = inputs["mm_token_type_ids"].clone()
    roles[:, -num_answer:] = 0
    return inputs | {"labels": labels, "mm_token_type_ids": roles}


def real_word_logits(logits: torch.Tensor) -> torch.Tensor:
    """Logits without the placeholder's, which the release's head does not have."""
    return logits[..., [index for index in range(logits.shape[-1]) if index != IMAGE_TOKEN_ID]]
