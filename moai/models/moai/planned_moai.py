"""MoAIs that lie nowhere yet, as a configuration and a processor: nobody reads their weights."""

from __future__ import annotations

from transformers import AutoConfig

from ...checkpoints.io.lookup import find_checkpoint
from .backbone_processor import build_processor_from_backbones, load_backbone_tokenizer
from .configuration_moai import MoAIConfig
from .image_processing_moai import MoAIImageProcessor
from .processing_moai import MoAIProcessor
from .tokenization_internlm2 import IMAGE_TOKEN

__all__ = ["plan_backbones", "plan_moai_7b"]


def plan_moai_7b() -> tuple[MoAIConfig, MoAIProcessor]:
    """The paper's model: CLIP ViT-L at 490 px, InternLM2-7B with partial LoRA of rank 256, the release's compressor.

    Its tokenizer is the bundled model's: counting needs any.
    """
    tokenizer = MoAIProcessor.from_pretrained(find_checkpoint("moai-nano")).tokenizer
    image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    config = MoAIConfig(plora_rank=256, compressor={"architecture": "perceiver"}, image_token_id=image_token_id)
    side = config.vision_config.image_size
    images = MoAIImageProcessor(size={"height": side, "width": side})
    return config, MoAIProcessor(images, tokenizer, num_image_tokens=config.num_image_tokens)


def plan_backbones(vision: str, text: str) -> tuple[MoAIConfig, MoAIProcessor]:
    """The MoAI that ``from_backbones`` would build of two.

    Args:
        vision: Folder or hub name of a vision tower.
        text: Folder or hub name of a decoder, with its tokenizer.
    """
    tower, decoder = AutoConfig.from_pretrained(vision), AutoConfig.from_pretrained(text).get_text_config()
    tower = getattr(tower, "vision_config", None) or tower
    image_token_id = load_backbone_tokenizer(text).convert_tokens_to_ids(IMAGE_TOKEN)
    decoder.vocab_size = max(decoder.vocab_size, image_token_id + 1)
    config = MoAIConfig(vision_config=tower, text_config=decoder, image_token_id=image_token_id)
    return config, build_processor_from_backbones(vision, text, config)
