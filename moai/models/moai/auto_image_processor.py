"""Registers the image processor with AutoImageProcessor."""

from transformers import AutoImageProcessor

from .configuration_moai import MoAIConfig
from .image_processing_moai import MoAIImageProcessor

# Both names lead to the Pillow form: pixels must not depend on whether torchvision is installed.
AutoImageProcessor.register(
    MoAIConfig, image_processor_classes={"pil": MoAIImageProcessor, "torchvision": MoAIImageProcessor}, exist_ok=True
)
