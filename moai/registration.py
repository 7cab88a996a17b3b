"""Makes AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor and pipelines know MoAI."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from .configuration_moai import MoAIConfig
from .modeling_moai import MoAIForConditionalGeneration, MoAIModel
from .processing_moai import MoAIProcessor
from .tokenization_internlm2 import InternLM2Tokenizer


def register_auto_classes() -> None:
    """Register configuration, models, processor and tokenizer; safe to call twice."""
    AutoConfig.register(MoAIConfig.model_type, MoAIConfig, exist_ok=True)
    AutoModel.register(MoAIConfig, MoAIModel, exist_ok=True)
    AutoModelForImageTextToText.register(MoAIConfig, MoAIForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(MoAIConfig, MoAIProcessor, exist_ok=True)
    AutoTokenizer.register(MoAIConfig, slow_tokenizer_class=InternLM2Tokenizer, exist_ok=True)
