"""Registers BERT's tokenizer with AutoTokenizer."""

from transformers import AutoTokenizer, BertTokenizer

from .configuration_tcl import TCLConfig

AutoTokenizer.register(TCLConfig, tokenizer_class=BertTokenizer, exist_ok=True)
