"""Image tokens of a vision tower of any family.

Apart from :mod:`.backbones`, whose Auto classes import every registered model, one of which needs this.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

__all__ = ["encode_image_tokens"]


def encode_image_tokens(tower: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Image tokens after a tower's last norm, ``(B, n, D)``, class tokens first where it has any.

    Args:
        tower: Of any family.
        pixel_values: ``(B, 3, H, W)``.
    """
    states = tower(pixel_values).last_hidden_state
    # CLIP gives its last norm to the pooler alone; other towers' last hidden state is behind it.
    return tower.post_layernorm(states) if tower.config.model_type == "clip_vision_model" else states
