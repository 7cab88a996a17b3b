"""Emu's visual decoder: a diffusion model learns images from the embeddings that an Emu predicts for them."""
