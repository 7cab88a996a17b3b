"""Flamingo (with OpenFlamingo's weights): a frozen decoder that looks at images through gated cross-attention."""
