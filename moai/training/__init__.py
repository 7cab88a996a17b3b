"""Training: one trainer, its tasks, and the two stages of MoAI."""
