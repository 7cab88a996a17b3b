"""Makes AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor and their kin know MoAI; pipelines too."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from .configuration_moai import MoAIConfig
from .modeling_moai import MoAIForConditionalGeneration, MoAIModel
from .processing_moai import register_processing


def register_auto_classes() -> None:
    """Register configuration, models, processor and tokenizer; safe to call twice."""
    AutoConfig.register(MoAIConfig.model_type, MoAIConfig, exist_ok=True)
    AutoModel.register(MoAIConfig, MoAIModel, exist_ok=True)
    for auto_class in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
        auto_class.register(MoAIConfig, MoAIForConditionalGeneration, exist_ok=True)
    register_processing(MoAIConfig)
    # Pipelines find a registered class through the auto mapping; `transformers serve` (5.23) looks for its name in
    # this plain table only. The table is read by key elsewhere, and no built-in model is called "moai".
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.setdefault(MoAIConfig.model_type, MoAIForConditionalGeneration.__name__)
