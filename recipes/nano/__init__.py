"""Recipe of moai-nano: tokenizer, text pretraining, compressor pretraining, then the whole model."""
