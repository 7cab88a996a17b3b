"""Images that stand several times in a batch, which need to pass the vision tower once."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["find_different_rows", "repeat_rows"]


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


def repeat_rows(outputs: Any, places: torch.Tensor) -> Any:
    """A vision tower's output with its rows as often as their images stood in the batch.

    Args:
        outputs: Tensors, tuples of them and output classes; first dimension = different images.
        places: From :func:`find_different_rows`.
    """
    if isinstance(outputs, torch.Tensor):
        return outputs[places]
    if isinstance(outputs, tuple):
        return tuple(repeat_rows(value, places) for value in outputs)
    for name, value in list(outputs.items()):
        if value is not None:
            outputs[name] = repeat_rows(value, places)
    return outputs
