"""The processor that prepares images and prompts as the released code does."""

from __future__ import annotations

from typing import Any

from ...models.moai.configuration_moai import MoAIConfig
from ...models.moai.image_processing_moai import MoAIImageProcessor
from ...models.moai.processing_moai import MoAIProcessor
from ...models.moai.tokenization_internlm2 import InternLM2Tokenizer

PIXEL_RANGE = 255


def build_official_processor(
    tokenizer: InternLM2Tokenizer, raw_config: dict[str, Any], config: MoAIConfig
) -> MoAIProcessor:
    """Build the processor of a converted checkpoint.

    Args:
        tokenizer: The checkpoint's tokenizer.
        raw_config: The source's config.json; ``image_mean_255`` and ``image_std_255`` replace CLIP's constants.
        config: The converted configuration.

    Returns:
        The processor.
    """
    side = config.vision_config.image_size
    settings: dict[str, Any] = {"size": {"height": side, "width": side}}
    for name in ("image_mean", "image_std"):
        values = raw_config.get(f"{name}_255")
        if values is not None:
            settings[name] = [value / PIXEL_RANGE for value in values]
    return MoAIProcessor(
        MoAIImageProcessor(**settings),
        tokenizer,
        num_image_tokens=config.num_image_tokens,
        auxiliary_map_scale=config.auxiliary_map_scale,
    )
