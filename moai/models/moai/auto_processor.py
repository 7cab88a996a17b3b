"""Registers the processor with AutoProcessor."""

from transformers import AutoProcessor

from ...processing.processing_moai import MoAIProcessor
from .configuration_moai import MoAIConfig

AutoProcessor.register(MoAIConfig, MoAIProcessor, exist_ok=True)
