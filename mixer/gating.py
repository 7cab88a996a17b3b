"""Gate of one stream: weights of the three experts, per token."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_mixer import NUM_EXPERTS


class Gate(nn.Module):
    """Linear(D, 3) and softmax per token, in float32 whatever the model's dtype (paper, section 3.2).

    A half-precision softmax here moved the released model's logits by 0.04 on the reference fixtures.

    Args:
        hidden_size: Width D of the tokens.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(NUM_EXPERTS, hidden_size))
        self.bias = nn.Parameter(torch.zeros(NUM_EXPERTS))

    def forward(
        self, tokens: torch.Tensor, available: torch.Tensor | None = None, top_k: int = NUM_EXPERTS
    ) -> torch.Tensor:
        """Compute the experts' weights.

        Args:
            tokens: ``(B, N, D)`` tokens of the stream.
            available: ``(B, 1, 3)`` bool, False for an expert whose source is absent in that sample; None = all there.
            top_k: Keep only the ``top_k`` largest gates of each token and renormalise.

        Returns:
            ``(B, N, 3)`` float32 weights that sum to 1 (expert order: auxiliary, other modality, self).
        """
        device = tokens.device.type
        is_known = torch.amp.is_autocast_available(device)  # the meta device knows none
        # autocast would take float32 inputs back to bfloat16
        with torch.autocast(device if is_known else "cpu", enabled=False):
            logits = F.linear(tokens.float(), self.weight.float(), self.bias.float())
        if available is not None:
            logits = logits.masked_fill(~available, torch.finfo(torch.float32).min)
        if top_k < NUM_EXPERTS:
            kept = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, logits.topk(top_k, dim=-1).indices, True)
            logits = logits.masked_fill(~kept, float("-inf"))
        return logits.softmax(dim=-1)
