"""Emu: images and texts in one sequence, each the next element after the other; it also draws."""
