"""Registers the processor with AutoProcessor."""

from transformers import AutoProcessor

from .configuration_emu import EmuConfig
from .processing_emu import EmuProcessor

AutoProcessor.register(EmuConfig, EmuProcessor, exist_ok=True)
