"""Registers the image processor with AutoImageProcessor."""

from transformers import AutoImageProcessor

from .configuration_flamingo import FlamingoConfig
from .image_processing_flamingo import FlamingoImageProcessor

# Both names lead to the Pillow form: pixels must not depend on whether torchvision is installed.
AutoImageProcessor.register(
    FlamingoConfig,
    image_processor_classes={"pil": FlamingoImageProcessor, "torchvision": FlamingoImageProcessor},
    exist_ok=True,
)
