"""EfficientNet-lite, a classifier of images for processors without an accelerator, as a transformers model.

Importing this package imports torch and transformers; `verbalizers` itself does not import it until it is used.
"""

from transformers import AutoConfig, AutoModelForImageClassification

from verbalizers.efficientnet.configuration_efficientnet_lite import EfficientNetLiteConfig
from verbalizers.efficientnet.modeling_efficientnet_lite import (
    EfficientNetLiteForImageClassification,
    EfficientNetLiteOutput,
)

AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
AutoModelForImageClassification.register(EfficientNetLiteConfig, EfficientNetLiteForImageClassification, exist_ok=True)

__all__ = ["EfficientNetLiteConfig", "EfficientNetLiteForImageClassification", "EfficientNetLiteOutput"]
