"""MoAI (Mixture of All Intelligence) on Hugging Face: a vision-language model that lets computer vision look first.

Importing this package registers the model with transformers' Auto classes. No computer-vision backend is imported.
"""

from .import_utils import check_first_party_packages

check_first_party_packages()

from .registration import register_auto_classes  # noqa: E402

register_auto_classes()

from .configuration_moai import MoAIConfig  # noqa: E402
from .modeling_moai import MoAIForConditionalGeneration, MoAIModel, MoAIPreTrainedModel  # noqa: E402
from .processing_moai import MoAIProcessor  # noqa: E402
from .tokenization_internlm2 import InternLM2Tokenizer  # noqa: E402

__all__ = [
    "InternLM2Tokenizer",
    "MoAIConfig",
    "MoAIForConditionalGeneration",
    "MoAIModel",
    "MoAIOutput",
    "MoAIPipeline",
    "MoAIPreTrainedModel",
    "MoAIProcessor",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import the pipeline, and with it the verbalizers' package, on first use."""
    if name in ("MoAIPipeline", "MoAIOutput"):
        from . import pipeline_moai

        return getattr(pipeline_moai, name)
    raise AttributeError(f"module 'moai' has no attribute {name!r}")
