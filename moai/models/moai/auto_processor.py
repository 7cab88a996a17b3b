"""Registers the processor with AutoProcessor."""

from transformers import AutoProcessor

from .configuration_moai import MoAIConfig
from .processing_moai import MoAIProcessor

AutoProcessor.register(MoAIConfig, MoAIProcessor, exist_ok=True)
