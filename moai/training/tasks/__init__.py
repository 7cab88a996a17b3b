"""Training tasks: a model, its batches, its loss."""
