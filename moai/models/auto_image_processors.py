"""Registers the models' image processors with AutoImageProcessor."""

from transformers import AutoImageProcessor

from .registry import CLASS_PREFIXES, class_of

for _model in CLASS_PREFIXES:
    _config = class_of(_model, "configuration", "Config")
    # Both names lead to the Pillow form: pixels must not depend on whether torchvision is installed.
    _classes = dict.fromkeys(("pil", "torchvision"), class_of(_model, "image_processing", "ImageProcessor"))
    AutoImageProcessor.register(_config, image_processor_classes=_classes, exist_ok=True)
