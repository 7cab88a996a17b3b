"""Rows of what passes the vision tower: images that stand several times in a batch, images and maps together."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["find_different_rows", "passes_together", "take_rows"]

#: Images and maps that pass the tower together on a CPU: 0.7 to 0.9 of the time of two passes for one of each, while
#: at 8 of each larger blocks of memory cost more than one pass less gives.
_MOST_TOGETHER_ON_CPU = 4


def passes_together(images: torch.Tensor | None, maps: torch.Tensor | None) -> bool:
    """Whether one pass of images and maps is possible, and faster than two.

    Args:
        images: ``(images, 3, H, W)`` or None.
        maps: ``(B, 3, h, w)`` or None.
    """
    if images is None or maps is None or torch.compiler.is_compiling():
        return False
    if (images.shape[1:], images.dtype, images.device) != (maps.shape[1:], maps.dtype, maps.device):
        return False
    return images.device.type != "cpu" or len(images) + len(maps) <= _MOST_TOGETHER_ON_CPU


def find_different_rows(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Leave out repetitions among images, where no gradient is asked for and no graph is traced.

    Args:
        images: ``(B, 3, H, W)``.

    Returns:
        The different ones in order of appearance, and for each image its place among them; None = all differ.
    """
    if len(images) < 2 or torch.is_grad_enabled() or torch.compiler.is_compiling() or images.is_meta:
        return images, None
    sums = images.flatten(1).sum(dim=1).tolist()
    firsts: list[int] = []
    places: list[int] = []
    for index, total in enumerate(sums):
        alike = (place for place, first in enumerate(firsts) if sums[first] == total)
        place = next((place for place in alike if torch.equal(images[firsts[place]], images[index])), len(firsts))
        places.append(place)
        if place == len(firsts):
            firsts.append(index)
    if len(firsts) == len(images):
        return images, None
    return images[firsts], torch.tensor(places, device=images.device)


def take_rows(outputs: Any, places: torch.Tensor | slice) -> Any:
    """Some rows of a vision tower's output, or rows as often as their images stood in the batch.

    Args:
        outputs: Tensors, tuples of them and output classes; first dimension = images.
        places: From :func:`find_different_rows`, or a range.
    """
    if isinstance(outputs, torch.Tensor):
        return outputs[places]
    if isinstance(outputs, tuple):
        return tuple(take_rows(value, places) for value in outputs)
    taken = {name: take_rows(value, places) for name, value in outputs.items() if value is not None}
    return type(outputs)(**taken)
