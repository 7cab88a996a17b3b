"""Registers the tokenizer with AutoTokenizer."""

from transformers import AutoTokenizer

from .configuration_moai import MoAIConfig
from .tokenization_internlm2 import InternLM2Tokenizer

# For checkpoints whose tokenizer_config.json names the class, and for those of ours that name none.
AutoTokenizer.register(MoAIConfig, tokenizer_class=InternLM2Tokenizer, exist_ok=True)
