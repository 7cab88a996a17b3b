"""Conversations about images of noise, as models with images anywhere in their sequence are asked."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

__all__ = ["CONVERSATIONS", "ask", "make_image"]

SIDE = 28


def make_image(seed: int) -> Image.Image:
    """An image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE + 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def ask(*parts: Any) -> list[dict[str, Any]]:
    """A user's turn of texts and images."""
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in parts]
    return [{"role": "user", "content": content}]


#: With three images, one, and none.
CONVERSATIONS = (
    ask(make_image(0), "one", make_image(1), "two", make_image(2), "Which is the brightest?"),
    ask("Before. ", make_image(3), "What?"),
    ask("No image at all?"),
)
