"""Prismer and PrismerZ (arXiv 2303.02506): frozen vision encoder and text decoder, joined, that read experts' maps."""
