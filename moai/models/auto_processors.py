"""Registers the models' processors with AutoProcessor."""

from transformers import AutoProcessor

from .registry import CLASS_PREFIXES, class_of

for _model in CLASS_PREFIXES:
    _config = class_of(_model, "configuration", "Config")
    AutoProcessor.register(_config, class_of(_model, "processing", "Processor"), exist_ok=True)
