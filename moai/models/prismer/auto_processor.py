"""Registers the processor with AutoProcessor."""

from transformers import AutoProcessor

from .configuration_prismer import PrismerConfig
from .processing_prismer import PrismerProcessor

AutoProcessor.register(PrismerConfig, PrismerProcessor, exist_ok=True)
