"""Registers the image processor with AutoImageProcessor: CLIP's without cropping."""

from transformers import AutoImageProcessor

from .configuration_tcl import TCLConfig
from .image_processing_tcl import TCLImageProcessor

# Both names lead to the Pillow form: pixels must not depend on whether torchvision is installed.
AutoImageProcessor.register(
    TCLConfig, image_processor_classes={"pil": TCLImageProcessor, "torchvision": TCLImageProcessor}, exist_ok=True
)
