"""Emu: images and texts in one sequence, each element predicted from those before it; it can generate images."""
