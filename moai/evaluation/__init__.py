"""Evaluation: what a MoAI answers right, and what its auxiliary tokens are worth."""
