"""What experts found in one image, as maps; what a PrismerProcessor takes beside images and texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from .configuration_prismer import DENSE_EXPERTS, LABEL_EXPERTS

__all__ = ["BACKGROUND", "EMPTY_SEGMENTATION", "ExpertMaps", "scale_values"]

#: Id of what no segment, object or text covers.
BACKGROUND = 255
#: What an image without segments consists of: an empty file is class 0 of COCO to the original, not background.
EMPTY_SEGMENTATION = "person"


@dataclass(frozen=True, eq=False)
class ExpertMaps:
    """Maps of one image; an expert that did not look has none.

    Attributes:
        maps: Expert -> ``(channels, h, w)`` float32 values of ``depth`` (1, larger = nearer), ``normal`` (3) and
            ``edge`` (1); ``(h, w)`` int64 ids of ``seg`` (classes), ``obj_detection`` (instances) and ``ocr_detection``
            (texts), :data:`BACKGROUND` where there is nothing.
        names: Expert -> id -> name of a class, of an instance's class, or the text.
    """

    maps: Mapping[str, torch.Tensor] = field(default_factory=dict)
    names: Mapping[str, Mapping[int, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for expert, values in self.maps.items():
            if expert not in DENSE_EXPERTS and expert not in LABEL_EXPERTS:
                raise ValueError(f"expected a map of one of {(*DENSE_EXPERTS, *LABEL_EXPERTS)}, got {expert!r}.")
            wanted = (DENSE_EXPERTS[expert], "h", "w") if expert in DENSE_EXPERTS else ("h", "w")
            if values.ndim != len(wanted) or (expert in DENSE_EXPERTS and len(values) != wanted[0]):
                raise ValueError(f"expected a map {wanted} of {expert!r}, got {tuple(values.shape)}.")

    def resize(self, expert: str, side: int) -> torch.Tensor:
        """An expert's map at ``side`` x ``side``, the nearest pixel of each; what is missing is empty.

        An empty map is 0 everywhere of values and segments, :data:`BACKGROUND` of instances and texts, as to the
        original.
        """
        values = self.maps.get(expert)
        if values is None:
            if expert in DENSE_EXPERTS:
                return torch.zeros(DENSE_EXPERTS[expert], side, side)
            return torch.full((side, side), 0 if expert == "seg" else BACKGROUND)
        planes = values.float()[None] if expert in DENSE_EXPERTS else values.float()[None, None]
        small = torch.nn.functional.interpolate(planes, size=(side, side), mode="nearest-exact")
        return small[0] if expert in DENSE_EXPERTS else small[0, 0].long()

    def names_of(self, expert: str) -> Mapping[int, str]:
        """Names by id; those of an empty segmentation where there is none."""
        if expert == "seg" and "seg" not in self.maps:
            return {0: EMPTY_SEGMENTATION}
        return self.names.get(expert, {})


def scale_values(values: torch.Tensor) -> torch.Tensor:
    """Values to [-1, 1] by the least and greatest of the map; a map of one value is -1 everywhere."""
    low, high = values.min(), values.max()
    return 2 * (values - low) / (high - low + 1e-6) - 1
