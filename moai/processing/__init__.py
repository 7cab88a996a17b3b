"""Images, prompts and verbalizations become model inputs: tokenizer, image processor, processor."""
