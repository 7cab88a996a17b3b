"""Models, one folder each; the registry makes transformers' Auto classes know them."""
