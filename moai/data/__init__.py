"""Data for MoAI: LLaVA-format files, datasets, collation, and the generator of synthetic scenes."""
