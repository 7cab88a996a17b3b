"""CLIP's learned position table for another image size."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def resize_position_table(table: torch.Tensor, grid: int) -> torch.Tensor:
    """Resize a square position table as the released MoAI does.

    Bicubic without aligned corners; the patch part passes through float16, which released weights have seen; the
    class token's row is kept. A table that already fits is returned as it is.

    Args:
        table: ``(1 + g * g, width)``, class token first, patches row by row.
        grid: Patches per side wanted.

    Returns:
        ``(1 + grid * grid, width)`` in the table's dtype.

    Raises:
        ValueError: If the table's patch part is not square.
    """
    num_patches = table.shape[0] - 1
    old_grid = round(num_patches**0.5)
    if old_grid**2 != num_patches:
        raise ValueError(
            f"Expected a position table with one class row and a square of patches, got {table.shape[0]} rows. "
            "Only square towers with a class token can be resized."
        )
    if old_grid == grid:
        return table
    if table.device.type == "meta":
        return table.new_empty(1 + grid**2, table.shape[1])
    patches = table[1:].float().unflatten(0, (old_grid, old_grid)).permute(2, 0, 1)[None]  # (1, width, g, g)
    resized = F.interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False)
    resized = resized[0].permute(1, 2, 0).flatten(0, 1).half()
    return torch.cat([table[:1], resized.to(table.dtype)])
