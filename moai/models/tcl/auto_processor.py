"""Registers the processor with AutoProcessor."""

from transformers import AutoProcessor

from .configuration_tcl import TCLConfig
from .processing_tcl import TCLProcessor

AutoProcessor.register(TCLConfig, TCLProcessor, exist_ok=True)
