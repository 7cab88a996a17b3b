"""The MoAI model: configuration, the mixture in a decoder, generation, saving and adapters."""
