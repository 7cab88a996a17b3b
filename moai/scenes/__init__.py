"""Synthetic Scenes: images, what is in them, and questions about them, drawn from seeds."""
