"""Checkpoints: their folders and files (io), and released ones in this project's format (convert)."""
