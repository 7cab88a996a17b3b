"""The compressor: auxiliary tokens to a fixed number of learned latents."""

from .configuration_compressor import ARCHITECTURES, CompressorConfig
from .modeling_compressor import Compressor, LatentTokens

__all__ = ["ARCHITECTURES", "Compressor", "CompressorConfig", "LatentTokens"]
