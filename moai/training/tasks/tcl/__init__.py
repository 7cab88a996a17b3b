"""TCL: image and text encoders that learn from captions by contrast, matching and masked words."""
