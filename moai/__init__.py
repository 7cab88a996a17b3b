"""MoAI (Mixture of All Intelligence) on Hugging Face: a vision-language model that lets computer vision look first.

Importing this package lets transformers' Auto classes know the model. Names are imported on first use: no torch, no
transformers, no computer-vision backend before that.
"""

import importlib
from typing import TYPE_CHECKING

from .import_utils import check_first_party_packages
from .models.registry import register_auto_classes

if TYPE_CHECKING:
    from .models.moai.configuration_moai import MoAIConfig
    from .models.moai.image_processing_moai import MoAIImageProcessor
    from .models.moai.modeling_moai import MoAIForConditionalGeneration, MoAIModel, MoAIPreTrainedModel
    from .models.moai.new_model import from_backbones
    from .models.moai.processing_moai import MoAIProcessor
    from .models.moai.tokenization_internlm2 import InternLM2Tokenizer
    from .pipeline.answers import Answer
    from .pipeline.pipeline import Pipeline

__all__ = [
    "Answer",
    "InternLM2Tokenizer",
    "MoAIConfig",
    "MoAIForConditionalGeneration",
    "MoAIImageProcessor",
    "MoAIModel",
    "MoAIPreTrainedModel",
    "MoAIProcessor",
    "Pipeline",
    "from_backbones",
]

__version__ = "0.1.0"

_MODULE_OF_NAME = {
    "Answer": "pipeline.answers",
    "InternLM2Tokenizer": "models.moai.tokenization_internlm2",
    "MoAIConfig": "models.moai.configuration_moai",
    "MoAIForConditionalGeneration": "models.moai.modeling_moai",
    "MoAIImageProcessor": "models.moai.image_processing_moai",
    "MoAIModel": "models.moai.modeling_moai",
    "MoAIPreTrainedModel": "models.moai.modeling_moai",
    "MoAIProcessor": "models.moai.processing_moai",
    "Pipeline": "pipeline.pipeline",
    "from_backbones": "models.moai.new_model",
}

check_first_party_packages()
register_auto_classes()


def __getattr__(name: str) -> object:
    """Import a public name on first use."""
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module 'moai' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF_NAME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
