"""Registers RoBERTa's tokenizer with AutoTokenizer."""

from transformers import AutoTokenizer, RobertaTokenizer

from .configuration_prismer import PrismerConfig

AutoTokenizer.register(PrismerConfig, tokenizer_class=RobertaTokenizer, exist_ok=True)
