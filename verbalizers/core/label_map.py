"""Label maps: what a verbalizer found at every pixel, as depth, surface normals, edges or numbers of instances."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from verbalizers.core.map_packing import MAP_DTYPES, pack_map, unpack_map
from verbalizers.core.structures import Finding, register_finding
from verbalizers.core.validation import check_map_shape, checked_array, checked_names

__all__ = ["LabelMap"]

_NEXT_STEP = "Scale shares to uint8 or uint16, give numbers of things as int32 and measures as float32."


@register_finding
@dataclass(frozen=True, eq=False)
class LabelMap(Finding):
    """Values or numbers of things, pixel by pixel.

    The dtype says what the values are: uint8 and uint16 are shares of their range (0 = 0.0, 255 or 65535 = 1.0),
    float32 are measures as they stand, int32 are numbers that stand for something. The kind says what is measured:
    `depth` nearness (1 = nearest), `edge` contrast, `normal` x, y and z of a unit vector, moved from [-1, 1] to [0, 1].

    Attributes:
        values: uint8, uint16, int32 or float32 `(h, w)` or `(h, w, C)` over the whole image; as large as it or smaller.
        names: what the numbers of an int32 `(h, w)` map stand for; those that are not here have no name.
    """

    structure: ClassVar[str] = "label_map"

    values: np.ndarray
    names: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values = np.asarray(self.values)
        if values.dtype.name not in MAP_DTYPES or values.ndim not in (2, 3) or 0 in values.shape:
            raise ValueError(
                f"`values` must be {', '.join(MAP_DTYPES)} of (h, w) or (h, w, channels), got {values.dtype} "
                f"{values.shape}. {_NEXT_STEP}"
            )
        check_map_shape(values.shape)
        dtype = np.dtype(values.dtype.name).type
        self._set(values=checked_array(values, dtype, (None,) * values.ndim, "values", _NEXT_STEP))
        if not isinstance(self.names, Mapping):
            raise ValueError(f"`names` must be a mapping of numbers to names, got {type(self.names).__name__}.")
        if self.names and not (self.is_numbers and values.ndim == 2):
            raise ValueError(f"`names` must come with an int32 (h, w) map, got {values.dtype} {values.shape}.")
        numbers = checked_array(list(self.names), np.int32, (len(self.names),), "names", "Its keys are numbers.")
        names = checked_names(self.names.values(), "names")
        self._set(names=dict(zip(numbers.tolist(), names, strict=True)))

    @property
    def is_numbers(self) -> bool:
        """Whether the values stand for things."""
        return self.values.dtype == np.int32

    def read_shares(self, num_channels: int | None = None) -> np.ndarray:
        """Floats in [0, 1], `(h, w)`; with `num_channels` `(h, w, num_channels)`.

        Raises:
            ValueError: the values are numbers of things, measures beyond [0, 1], or of another shape.
        """
        wanted = "(h, w)" if num_channels is None else f"(h, w, {num_channels})"
        values, is_fitting = self.values, self.values.shape[2:] == (() if num_channels is None else (num_channels,))
        if is_fitting and values.dtype.kind == "u":
            return values / np.iinfo(values.dtype).max
        if not is_fitting or self.is_numbers or values.min() < 0 or values.max() > 1:
            got = f"{values.dtype} {values.shape} from {values.min()} to {values.max()}"
            raise ValueError(f"expected a map {wanted} of shares in [0, 1], got {got}. {_NEXT_STEP}")
        return values

    def check_image_size(self, image_size_hw: tuple[int, int]) -> None:
        """See `Finding.check_image_size`."""
        if any(side > limit for side, limit in zip(self.values.shape, image_size_hw, strict=False)):
            raise ValueError(
                f"a map must be as large as its image of {image_size_hw} (height, width) or smaller, got "
                f"{self.values.shape[:2]}. Resize it to the original image."
            )

    def to_dict(self) -> dict[str, Any]:
        """As `Finding.to_dict`; the values are a PNG as base64 (`map_packing`)."""
        packed = base64.b64encode(pack_map(self.values)).decode("ascii")
        result = {"structure": self.structure, "dtype": self.values.dtype.name, "shape": list(self.values.shape)}
        result["png"] = packed
        return result | ({"names": {str(number): name for number, name in self.names.items()}} if self.names else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LabelMap:
        """Rebuild from `to_dict`'s output; claimed sizes are checked before any memory is taken.

        Raises:
            ValueError: a field is missing, unknown or does not validate.
        """
        next_step = "Write it with LabelMap.to_dict()."
        if not isinstance(data, Mapping) or data.get("structure", cls.structure) != cls.structure:
            raise ValueError(f"LabelMap.from_dict expects a mapping of structure {cls.structure!r}. {next_step}")
        fields = set(data) - {"structure"}
        if not {"dtype", "shape", "png"} <= fields <= {"dtype", "shape", "png", "names"}:
            raise ValueError(
                f"a label map must have dtype, shape, png and maybe names, got {sorted(fields)}. {next_step}"
            )
        dtype, shape, names = data["dtype"], data["shape"], data.get("names", {})
        if not isinstance(dtype, str) or dtype not in MAP_DTYPES:
            raise ValueError(f"`dtype` must be one of {', '.join(MAP_DTYPES)}, got {dtype!r}. {next_step}")
        if not isinstance(shape, list) or any(type(side) is not int for side in shape) or len(shape) not in (2, 3):
            raise ValueError(f"`shape` must be [h, w] or [h, w, channels], got {shape!r}. {next_step}")
        if not isinstance(names, Mapping):
            raise ValueError(f"`names` must be an object of names by number, got {type(names).__name__}. {next_step}")
        try:
            png = base64.b64decode(data["png"], validate=True)
            numbers = {int(number): name for number, name in names.items()}
        except (binascii.Error, TypeError, ValueError) as error:
            raise ValueError(f"expected a PNG as base64 and names by number, got {error}. {next_step}") from error
        return cls(unpack_map(png, tuple(shape), dtype), numbers)
