"""The processor of a MoAI built from backbones: the decoder's own tokenizer plus ``<image>``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerBase

from ..backbones import TOKENIZER_FILES, has_tokenizer, read_normalization
from .backbone_loading import INTERNLM2_MODEL_TYPE, read_model_type, resolve_folder, split_gguf_path
from .configuration_moai import MoAIConfig
from .image_processing_moai import MoAIImageProcessor
from .processing_moai import MoAIProcessor
from .tokenization_internlm2 import IMAGE_TOKEN, InternLM2Tokenizer


def build_processor_from_backbones(
    vision: str | Path, text: str | Path, config: MoAIConfig, *, gguf_file: str | None = None
) -> MoAIProcessor:
    """Build the processor that fits a model of :func:`moai.models.moai.backbones.build_from_backbones`.

    Args:
        vision: Folder or hub name of the vision backbone; its ``preprocessor_config.json`` gives mean and standard
            deviation (CLIP's where there is none).
        text: Folder, hub name or .gguf file of the language model.
        config: The model's configuration: image size, patch tokens, id of ``<image>``.
        gguf_file: GGUF file inside ``text``.

    Returns:
        The processor.

    Raises:
        ValueError: If ``text`` has no tokenizer, or it gives ``<image>`` another id than the model has.
    """
    tokenizer = load_backbone_tokenizer(text, gguf_file)
    token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    if token_id != config.image_token_id:
        raise ValueError(
            f"The tokenizer gives {IMAGE_TOKEN} the id {token_id}, the model has {config.image_token_id}. "
            f"Build the model with image_token_id={token_id}."
        )
    side = config.vision_config.image_size
    settings: dict[str, Any] = {"size": {"height": side, "width": side}} | read_normalization(str(vision))
    return MoAIProcessor(
        MoAIImageProcessor(**settings),
        tokenizer,
        num_image_tokens=config.num_image_tokens,
        auxiliary_map_scale=config.auxiliary_map_scale,
    )


def load_backbone_tokenizer(
    text: str | Path, gguf_file: str | None = None, *, is_optional: bool = False
) -> PreTrainedTokenizerBase | None:
    """Load a language model's tokenizer and add ``<image>`` to it.

    Args:
        text: Folder, hub name or .gguf file.
        gguf_file: GGUF file inside ``text``.
        is_optional: Return None rather than raise where there is no tokenizer.

    Returns:
        The tokenizer, padding on the left; ``</s>`` or its like pads where it has no padding token.

    Raises:
        ValueError: If there is no tokenizer.
    """
    name, gguf_file = split_gguf_path(str(text), gguf_file)
    if gguf_file is None and not has_tokenizer(name):
        if is_optional:
            return None
        raise ValueError(f"Expected a tokenizer ({', '.join(TOKENIZER_FILES)}) in {name}, got none. Copy it there.")
    if gguf_file is None and read_model_type(name) == INTERNLM2_MODEL_TYPE:
        return InternLM2Tokenizer(str(resolve_folder(name) / "tokenizer.model"))
    settings = {} if gguf_file is None else {"gguf_file": gguf_file}
    tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left", **settings)
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
