"""Registers the image processor with AutoImageProcessor: CLIP's without cropping."""

from transformers import AutoImageProcessor

from .configuration_prismer import PrismerConfig
from .image_processing_prismer import PrismerImageProcessor

# Both names lead to the Pillow form: pixels must not depend on whether torchvision is installed.
AutoImageProcessor.register(
    PrismerConfig,
    image_processor_classes={"pil": PrismerImageProcessor, "torchvision": PrismerImageProcessor},
    exist_ok=True,
)
