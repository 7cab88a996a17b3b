"""Registers the processor with AutoProcessor."""

from transformers import AutoProcessor

from .configuration_flamingo import FlamingoConfig
from .processing_flamingo import FlamingoProcessor

AutoProcessor.register(FlamingoConfig, FlamingoProcessor, exist_ok=True)
