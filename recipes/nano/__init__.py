"""moai-nano from nothing: tokenizer, text reading, compressor, then the whole model."""
