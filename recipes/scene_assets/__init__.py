"""Recipe of the scenes' sprite sheet."""
