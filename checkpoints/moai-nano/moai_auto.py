"""For transformers' trust_remote_code: the classes of this checkpoint are those of the package moai-vlm."""

try:
    from moai import (
        InternLM2Tokenizer,
        MoAIConfig,
        MoAIForConditionalGeneration,
        MoAIImageProcessor,
        MoAIModel,
        MoAIProcessor,
    )
except ImportError as error:
    raise ImportError(
        "this checkpoint needs the package moai-vlm. Install it from a clone of its repository: pip install FOLDER"
    ) from error

__all__ = [
    "InternLM2Tokenizer",
    "MoAIConfig",
    "MoAIForConditionalGeneration",
    "MoAIImageProcessor",
    "MoAIModel",
    "MoAIProcessor",
]
