"""MoAI (Mixture of All Intelligence) on Hugging Face: a vision-language model that lets computer vision look first.

Importing this package lets transformers' Auto classes know the model. Names are imported on first use: no torch, no
transformers, no computer-vision backend before that.
"""

import importlib
from typing import TYPE_CHECKING

from .import_utils import check_first_party_packages
from .models.registry import register_auto_classes
from .moved_modules import MOVED_MODULES, answer_to_old_names

if TYPE_CHECKING:
    from .models.moai.configuration_moai import MoAIConfig
    from .models.moai.modeling_moai import MoAIForConditionalGeneration, MoAIModel, MoAIPreTrainedModel
    from .models.moai.new_model import from_backbones
    from .pipeline.pipeline_moai import MoAIOutput, MoAIPipeline
    from .processing.processing_moai import MoAIProcessor
    from .processing.tokenization_internlm2 import InternLM2Tokenizer

__all__ = [
    "InternLM2Tokenizer",
    "MoAIConfig",
    "MoAIForConditionalGeneration",
    "MoAIModel",
    "MoAIOutput",
    "MoAIPipeline",
    "MoAIPreTrainedModel",
    "MoAIProcessor",
    "from_backbones",
]

__version__ = "0.1.0"

_MODULE_OF_NAME = {
    "InternLM2Tokenizer": "processing.tokenization_internlm2",
    "MoAIConfig": "models.moai.configuration_moai",
    "MoAIForConditionalGeneration": "models.moai.modeling_moai",
    "MoAIModel": "models.moai.modeling_moai",
    "MoAIOutput": "pipeline.pipeline_moai",
    "MoAIPipeline": "pipeline.pipeline_moai",
    "MoAIPreTrainedModel": "models.moai.modeling_moai",
    "MoAIProcessor": "processing.processing_moai",
    "from_backbones": "models.moai.new_model",
}

check_first_party_packages()
answer_to_old_names()
register_auto_classes()


def __getattr__(name: str) -> object:
    """Import a public name, or a module under the name it had, on first use."""
    if name in _MODULE_OF_NAME:
        value = getattr(importlib.import_module(f".{_MODULE_OF_NAME[name]}", __name__), name)
    elif (old := f"{__name__}.{name}") in MOVED_MODULES:
        value = importlib.import_module(old)
    else:
        raise AttributeError(f"module 'moai' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
