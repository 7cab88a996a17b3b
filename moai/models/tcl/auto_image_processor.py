"""Registers the image processor with AutoImageProcessor: CLIP's without cropping, as MoAI's."""

from transformers import AutoImageProcessor

from ...processing.image_processing_moai import MoAIImageProcessor
from .configuration_tcl import TCLConfig

# Both names lead to the Pillow form: pixels must not depend on whether torchvision is installed.
AutoImageProcessor.register(
    TCLConfig, image_processor_classes={"pil": MoAIImageProcessor, "torchvision": MoAIImageProcessor}, exist_ok=True
)
