"""Where checkpoints lie, and reading and writing their files."""
