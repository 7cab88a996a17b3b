"""Registers the image processor with AutoImageProcessor."""

from transformers import AutoImageProcessor

from .configuration_emu import EmuConfig
from .image_processing_emu import EmuImageProcessor

# Both names lead to the Pillow form: pixels must not depend on whether torchvision is installed.
AutoImageProcessor.register(
    EmuConfig, image_processor_classes={"pil": EmuImageProcessor, "torchvision": EmuImageProcessor}, exist_ok=True
)
