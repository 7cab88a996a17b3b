"""Any image-text-to-text model of transformers, unmodified, with the verbalization in its prompt."""
