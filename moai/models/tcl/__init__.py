"""TCL: an image encoder and a text encoder that learn from captions, with layers that join the two."""
